#!/bin/sh
# In the virtual machine: runs the tests of a test program one after the other, goes on behind one that takes the
# process with it, and prints the totals. Each line has the seconds a test took.
#
#   suite.sh PROGRAM [PATTERN]
#
# NETIO3_TRIES: how often a test may be run until it passes (1); what took more than one is told.
program=$1
$program --list 2>/dev/null | sed -n 's/: test$//p' | grep -E "${2:-.}" > /tmp/left
total=$(wc -l < /tmp/left)
: > /tmp/results
skipped=0
while [ -s /tmp/left ]; do
    # shellcheck disable=SC2046 # names of tests have no blanks
    { $program --test-threads=1 --show-output --exact $(cat /tmp/left) 2>&1; echo $? > /tmp/status; } | awk '
        function now() { getline line < "/proc/uptime"; close("/proc/uptime"); return line + 0 }
        BEGIN { before = now() }
        /^test [^ ]+ \.\.\. / { t = now(); printf "%7.1f s  %s\n", t - before, substr($0, 6); before = t }
        { print > "/tmp/output" }'
    status=$(cat /tmp/status)
    sed -n 's/^test \([^ ]*\) \.\.\. \(ok\|FAILED\)$/\2 \1/p' /tmp/output >> /tmp/results
    if grep -q '^test result:' /tmp/output; then
        : > /tmp/left
    else
        name=$(sed -n 's/^test \([^ ]*\) \.\.\. .*/\1/p' /tmp/output | tail -n 1)
        echo "DIED $name" >> /tmp/results
        echo "the process ended with status $status in $name"
        tail -n 30 /tmp/output
        awk -v name="$name" 'found { print } $0 == name { found = 1 }' /tmp/left > /tmp/behind
        mv /tmp/behind /tmp/left
    fi
    skipped=$((skipped + $(grep -c '^skipped: ' /tmp/output)))
    # Of each failure the first lines.
    awk '/^---- / { name = $2; lines = 0 } /^failures:$/ { sections++ } /^skipped: / { next }
        sections == 1 && name && lines++ < 30 { print substr($0, 1, 240) }' /tmp/output
done
again=0
tries=1
while [ $tries -lt "${NETIO3_TRIES:-1}" ]; do
    tries=$((tries + 1))
    for name in $(sed -n 's/^FAILED //p' /tmp/results); do
        if $program --test-threads=1 --exact "$name" > /tmp/output 2>&1; then
            sed -i "s/^FAILED $name\$/ok $name/" /tmp/results
            again=$((again + 1))
            echo "ok at try $tries: $name"
        fi
    done
done
passed=$(grep -c '^ok ' /tmp/results)
failed=$(grep -vc '^ok ' /tmp/results)
grep -v '^ok ' /tmp/results
[ $again = 0 ] || retried=" ($again of them not at the first try)"
echo "suite: $total tests: $((passed - skipped)) passed${retried:-}, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" = "$total" ]
