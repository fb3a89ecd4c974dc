// Prints how many CPUs Go counts, or on how many it runs goroutines.
package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	if os.Args[1] == "cpus" {
		fmt.Println(runtime.NumCPU())
	} else {
		fmt.Println(runtime.GOMAXPROCS(0))
	}
}
