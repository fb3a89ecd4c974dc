# fish: what a person types; all else is for containerd.
complete -c containerd-shim-palisade-v1 -f
complete -c containerd-shim-palisade-v1 -o v -o version -d 'Print the version'
complete -c containerd-shim-palisade-v1 -o info -d 'Print what the runtime can do, in protobuf'
