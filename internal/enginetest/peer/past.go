package main

import (
	"fmt"
	"strconv"

	"github.com/vethwall/vethwall/internal/enginetest/beyond"
)

// past reaches the devices of the host, which this namespace has a number for.
func past(args []string) error {
	number := func(i int) int {
		n, err := strconv.Atoi(args[i])
		if err != nil {
			return -1
		}
		return n
	}
	switch {
	case len(args) == 4 && args[0] == "macvlan":
		return beyond.Device(number(1), "macvlan", args[3], number(2))
	case len(args) == 5 && args[0] == "port":
		return beyond.Port(number(1), number(2), args[3], args[4])
	case len(args) == 3 && args[0] == "delete":
		return beyond.Delete(number(1), number(2))
	}
	return fmt.Errorf("%w: past %v", errUsage, args)
}
