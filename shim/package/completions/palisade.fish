# fish: palisade completes its own command line, names of pods and containers included.
COMPLETE=fish palisade | source
