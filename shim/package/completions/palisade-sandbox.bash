# bash: what a person types; all else is for containerd and the shim.
complete -W '-v -version -info' containerd-shim-palisade-v1
complete -W '--version --help' palisade-sandbox
complete -W 'add remove' palisade-containerd
