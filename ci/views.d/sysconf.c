// Prints what sysconf(3) answers of the CPUs that are online, of those that are
// configured, or of the pages of memory. musl has no getconf.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **arguments) {
    const char *asked = count > 1 ? arguments[1] : "";
    int name = strcmp(asked, "online") == 0 ? _SC_NPROCESSORS_ONLN
        : strcmp(asked, "configured") == 0 ? _SC_NPROCESSORS_CONF : _SC_PHYS_PAGES;
    printf("%ld\n", sysconf(name));
}
