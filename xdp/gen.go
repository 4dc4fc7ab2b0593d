package xdp

//go:generate go tool bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -go-package xdp -type node -type table -type policy -type device -type counter_block -type record_key -type record_part filter ../bpf/xdp.c -- -O2 -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu
