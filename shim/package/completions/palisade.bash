# bash: palisade completes its own command line, names of pods and containers included.
eval "$(COMPLETE=bash palisade)"
