complete -c palisade-containerd -f
complete -c palisade-containerd -n __fish_is_first_token -a add -d "Name the runtime in containerd's configuration"
complete -c palisade-containerd -n __fish_is_first_token -a remove -d 'Take that away again'
