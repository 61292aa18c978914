#!/bin/sh
# In the virtual machine: transfers with netio3-bench between two processes, every byte verified.
#
#   transfer.sh ADDRESS [recv|send]      one side only, for a transfer between machines
address=$1
side=${2:-both}
# size, messages, further options of the sender
cases='64 20000 --mode=copy
4096 5000 --mode=zero-copy
65536 300 --mode=buffered
1048576 20 --mode=zero-copy
1024 5000 --mode=zero-copy|--connections=4'
port=7700
total=0
passed=0
for case in $(echo "$cases" | tr ' ' ','); do
    options=$(echo "$case" | cut -d, -f3 | tr '|' ' ')
    size=$(echo "$case" | cut -d, -f1)
    messages=$(echo "$case" | cut -d, -f2)
    total=$((total + 1))
    port=$((port + 1))
    good=1
    if [ "$side" != send ]; then
        timeout -s KILL 120 ./netio3-bench recv --listen "$address:$port" --backend rdma --provider verbs --verify > "/tmp/recv.$port" 2>&1 &
        receiver=$!
    fi
    if [ "$side" != recv ]; then
        tries=0
        # The status 2 says that nobody listens yet.
        while
            # shellcheck disable=SC2086 # several options
            timeout -s KILL 120 ./netio3-bench send --connect "$address:$port" --size "$size" --messages "$messages" $options \
                --backend rdma --provider verbs --verify > /tmp/send 2>&1
            status=$?
            [ $status = 2 ] && [ $tries -lt 60 ]
        do
            tries=$((tries + 1))
            sleep 1
        done
        [ $status = 0 ] || { good=0; echo "send ended with status $status"; }
        sed 's/^/    /' /tmp/send
    fi
    if [ "$side" != send ]; then
        wait "$receiver" || { echo "recv ended with status $?"; good=0; }
        sed 's/^/    /' "/tmp/recv.$port"
    fi
    echo "$([ $good = 1 ] && echo ok || echo FAILED)  $messages messages of $size bytes $options"
    passed=$((passed + good))
done
echo "transfer: $passed of $total passed"
[ "$passed" = "$total" ]
