# fish: what a person types; all else is for the shim.
complete -c palisade -f
complete -c palisade -l version -d 'Print the version'
complete -c palisade -l help -d 'Print what the program is for'
