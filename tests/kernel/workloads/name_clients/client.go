// SPDX-License-Identifier: Apache-2.0

// The pure-Go resolver: as name_client.py, without the C library. Arguments: rounds, pause in seconds, port, hosts.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"
)

func main() {
	rounds, _ := strconv.Atoi(os.Args[1])
	pause, _ := strconv.ParseFloat(os.Args[2], 64)
	hosts := map[string][2]int{}
	for turn := 0; turn < rounds; turn++ {
		for i, host := range os.Args[4:] {
			size := 1000 + 10*turn + i
			there, err := net.Dial("tcp", net.JoinHostPort(host, os.Args[3]))
			if err != nil {
				panic(err)
			}
			there.Write(make([]byte, size))
			there.(*net.TCPConn).CloseWrite()
			received, _ := io.ReadAll(there)
			there.Close()
			if len(received) != size {
				panic(fmt.Sprint(host, len(received)))
			}
			hosts[host] = [2]int{hosts[host][0] + 1, hosts[host][1] + size}
		}
		time.Sleep(time.Duration(pause * float64(time.Second)))
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{"pid": os.Getpid(), "hosts": hosts})
}
