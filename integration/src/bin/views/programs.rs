//! The programs of the table: how each is asked for the CPUs or the memory that it sees.

/// What a program prints in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A number of CPUs.
    Cpus,
    /// A size, in units of so many bytes.
    Memory(u64),
    /// The size in bytes up to which a heap grows: a part of the memory.
    Heap,
    /// Seconds since the container's start, or how many seconds ago a process began that has
    /// just begun.
    Seconds,
}

/// A program of the table.
#[derive(Debug)]
pub struct Program {
    /// Its name, and what of it is asked.
    pub name: &'static str,
    /// The package of Debian whose version is shown.
    pub package: &'static str,
    pub answer: Answer,
    /// A script of sh whose last line is the answer.
    pub script: &'static str,
}

const KIB: Answer = Answer::Memory(1 << 10);
const BYTES: Answer = Answer::Memory(1);

const fn asks(
    name: &'static str,
    package: &'static str,
    answer: Answer,
    script: &'static str,
) -> Program {
    Program { name, package, answer, script }
}

/// All of them. Those in `/opt` are compiled when `ci/views` makes the root file system.
pub const PROGRAMS: &[Program] = &[
    asks("`nproc`", "coreutils", Answer::Cpus, "nproc"),
    asks("BusyBox `nproc`", "busybox-static", Answer::Cpus, "busybox nproc"),
    asks("`lscpu`", "util-linux", Answer::Cpus, "lscpu | sed -n 's/^CPU(s): *//p'"),
    asks("glibc `sysconf`, CPUs online", "libc6", Answer::Cpus, "getconf _NPROCESSORS_ONLN"),
    asks("glibc `sysconf`, CPUs configured", "libc6", Answer::Cpus, "getconf _NPROCESSORS_CONF"),
    asks("glibc `sysconf`, pages of memory", "libc6", Answer::Memory(4096), "getconf _PHYS_PAGES"),
    asks("musl `sysconf`, CPUs online", "musl", Answer::Cpus, "/opt/sysconf-musl online"),
    asks("musl `sysconf`, CPUs configured", "musl", Answer::Cpus, "/opt/sysconf-musl configured"),
    asks("musl `sysconf`, pages of memory", "musl", Answer::Memory(4096), "/opt/sysconf-musl pages"),
    asks("`free`", "procps", KIB, "free | awk '/^Mem:/ { print $2 }'"),
    asks("BusyBox `free`", "busybox-static", KIB, "busybox free | awk '/^Mem:/ { print $2 }'"),
    asks("`top`, memory", "procps", KIB, "top -bn1 -E k | awk '/^KiB Mem/ { print $4 }'"),
    asks("`top`, CPUs", "procps", Answer::Cpus, "top -bn1 -1 -w 500 | grep -o '%Cpu[0-9]' | wc -l"),
    asks(
        "BusyBox `top`, memory",
        "busybox-static",
        KIB,
        "busybox top -bn1 | sed -n 's/^Mem: \\([0-9]*\\)K used, \\([0-9]*\\)K free.*/\\1 + \\2/p' | \
         { read sum; echo $(($sum)); }",
    ),
    asks("`vmstat`", "procps", KIB, "vmstat -s -S k | awk '/total memory/ { print int($1 * 1000 / 1024) }'"),
    asks(
        "`uptime`",
        "procps",
        Answer::Seconds,
        "echo $(($(date +%s) - $(date -d \"$(uptime -s)\" +%s)))",
    ),
    asks("`ps`, age of a new process", "procps", Answer::Seconds, "sleep 5 & ps -o etimes= -p $!"),
    asks(
        "`ps`, start of a new process",
        "procps",
        Answer::Seconds,
        "sleep 5 & echo $(($(date +%s) - $(date -d \"$(ps -o lstart= -p $!)\" +%s)))",
    ),
    asks("Python `os.cpu_count`", "python3", Answer::Cpus, "python3 -c 'import os; print(os.cpu_count())'"),
    asks(
        "Python `os.process_cpu_count`",
        "python3",
        Answer::Cpus,
        "python3 -c 'import os; print(os.process_cpu_count())'",
    ),
    asks(
        "psutil `cpu_count`",
        "python3-psutil",
        Answer::Cpus,
        "python3 -c 'import psutil; print(psutil.cpu_count())'",
    ),
    asks(
        "psutil `virtual_memory`",
        "python3-psutil",
        BYTES,
        "python3 -c 'import psutil; print(psutil.virtual_memory().total)'",
    ),
    asks("Node.js `os.cpus`", "nodejs", Answer::Cpus, "node -p 'os.cpus().length'"),
    asks(
        "Node.js `os.availableParallelism`",
        "nodejs",
        Answer::Cpus,
        "node -p 'os.availableParallelism()'",
    ),
    asks("Node.js `os.totalmem`", "nodejs", BYTES, "node -p 'os.totalmem()'"),
    asks("JVM `availableProcessors`", "openjdk-21-jdk-headless", Answer::Cpus, "java -cp /opt Views cpus"),
    asks("JVM, maximum heap", "openjdk-21-jdk-headless", Answer::Heap, "java -cp /opt Views heap"),
    asks("Go `NumCPU`", "golang-1.24-go", Answer::Cpus, "/opt/go-views cpus"),
    asks("Go `GOMAXPROCS`", "golang-1.24-go", Answer::Cpus, "/opt/go-views maxprocs"),
    asks(
        "nginx `worker_processes auto`",
        "nginx-light",
        Answer::Cpus,
        "nginx -c /opt/nginx.conf & main=$!
         until pgrep -P $main > /dev/null; do sleep 0.1; done
         sleep 0.5; pgrep -c -P $main; kill $main; wait $main",
    ),
    asks(
        "PostgreSQL, `pg_read_file` of `/proc/meminfo`",
        "postgresql-17",
        KIB,
        "as() { setpriv --reuid postgres --regid postgres --init-groups \"$@\"; }
         bin=/usr/lib/postgresql/17/bin db=/tmp/db
         { install -d -m 700 -o postgres $db
         [ -e $db/PG_VERSION ] || as $bin/initdb --no-sync -D $db -A trust
         as $bin/pg_ctl -D $db -w -l $db/log -o '-k /tmp -c listen_addresses=' start; } > /tmp/pg 2>&1 || cat /tmp/pg $db/log >&2
         as psql -h /tmp -At -c \"select substring(pg_read_file('/proc/meminfo', 0, 4096) from '[0-9]+')\" postgres > /tmp/pg
         as $bin/pg_ctl -D $db -w -m fast stop > /dev/null; cat /tmp/pg",
    ),
    asks(
        "Redis, `total_system_memory`",
        "redis-server",
        BYTES,
        "redis-server --save '' --port 0 --unixsocket /tmp/redis --dir /tmp > /tmp/log & server=$!
         until redis-cli -s /tmp/redis ping > /dev/null 2>&1; do sleep 0.1; done
         redis-cli -s /tmp/redis info memory | tr -d '\\r' | sed -n 's/^total_system_memory://p'
         kill $server; wait $server",
    ),
    asks(
        "`make -j$(nproc)`, jobs at once",
        "make",
        Answer::Cpus,
        "cd /tmp; rm -f running; make -s -f /opt/jobs.mk -j$(nproc); sort -n running | tail -n 1",
    ),
    asks(
        "`stress-ng --cpu 0`",
        "stress-ng",
        Answer::Cpus,
        "stress-ng --cpu 0 --cpu-ops 1 --temp-path /tmp 2>&1 | sed -n 's/.*dispatching hogs: \\([0-9]*\\) cpu.*/\\1/p'",
    ),
];
