# fish: what a person types; all else is for the shim.
complete -c palisade-sandbox -f
complete -c palisade-sandbox -l version -d 'Print the version'
complete -c palisade-sandbox -l help -d 'Print what the program is for'
