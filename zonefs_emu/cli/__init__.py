"""The command line: click, one file per verb.

Data goes to stdout and messages to stderr. Exit code 1 means that the device or the host refused, 2 that the command
line was wrong. Either comes with one sentence and never with a traceback. Layout:

    main                    the group, and where errors become sentences and exit codes
    verb_table              which verbs there are; each is imported when it is used
    common, durations, progress
                            options, types of arguments and helpers that several verbs share
    sizes, conditions, formats, picture, page, zone_reports
                            pure: sizes, names and reports in or out
    mount_helper            the arguments of mount(8), as those of the verb mount
    versions                what --version prints
    page_server             the page of watch --http
    templates, lsblk_table  create --like
    simulated_files, workload_files, simulated_report, latency_picture
                            workloads of simulate, and their results
    picture_file            writing the pictures of map and simulate into files
    timing_lines            the lines of stats, watch and why --slow on the timing
    every other module      one verb (manage: the four zone management verbs)

A verb does not know whether the image is held by a daemon: :mod:`zonefs_emu.front_ends.known` opens it either way.
"""
