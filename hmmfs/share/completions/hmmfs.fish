# fish completion of hmmfs
function __hmmfs_complete
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    set -l before (string join \n -- $words[2..-1] | string collect)
    for line in (env _HMMFS_COMPLETE=fish_complete COMP_WORDS="$before" COMP_CWORD="$word" \
            $words[1] 2>/dev/null)
        set -l parts (string split -m 2 \t -- $line)
        switch $parts[1]
            case dir
                __fish_complete_directories $word
            case file
                __fish_complete_path $word
            case plain
                string join \t -- $parts[2..-1]
        end
    end
end

complete --command hmmfs --no-files --arguments '(__hmmfs_complete)'
