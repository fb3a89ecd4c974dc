# Jobs that write into the file "running" how many of them run at once.
jobs := job1 job2 job3 job4 job5 job6
all: $(jobs)
$(jobs):
	mkdir $@; sleep 0.4; ls -d job* | wc -l >> running; sleep 0.4; rmdir $@
.PHONY: all $(jobs)
