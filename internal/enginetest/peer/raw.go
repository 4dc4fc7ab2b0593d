package main

import (
	"encoding/hex"
	"fmt"
	"net"
	"syscall"
)

// raw sends frames as they are (packet(7)), which takes CAP_NET_RAW: Docker gives it by default.
func raw(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("%w: raw %v", errUsage, args)
	}
	device, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = syscall.Close(fd) }()
	for _, text := range args[1:] {
		frame, err := hex.DecodeString(text)
		if err != nil || len(frame) < 14 {
			return fmt.Errorf("%w: %q is no frame", errUsage, text)
		}
		to := syscall.SockaddrLinklayer{Ifindex: device.Index, Protocol: uint16(frame[12]) | uint16(frame[13])<<8}
		if err := syscall.Sendto(fd, frame, 0, &to); err != nil {
			return err
		}
	}
	return nil
}
