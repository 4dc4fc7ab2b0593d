#!/usr/bin/env bash
# Runs the packet and link tests on Debian's own kernel in a virtual machine, under software emulation: minutes.
# Usage: hack/kernel.sh [REGEXP OF TESTS]; needs root for apt, and Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/.."

tests=${1:-Test}
# In the order in which they need each other.
modules="veth sch_ingress cls_bpf act_bpf llc stp bridge nfnetlink crc32c_generic libcrc32c nf_tables nft_meta_bridge ifb cls_u32 act_mirred macvlan udp_tunnel ip6_udp_tunnel vxlan"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DEBIAN_FRONTEND=noninteractive
newest() { apt-cache search '^linux-image-6\.1\..*-cloud-amd64$' | awk '{print $1}' | sort -V | tail -n 1; }
[[ -n $(newest) ]] || apt-get update >/dev/null
apt-get install -y --no-install-recommends qemu-system-x86 busybox-static cpio >/dev/null
kernel=$(newest)
chmod 755 "$work"
(cd "$work" && apt-get download "$kernel" >/dev/null 2>&1 && dpkg-deb -x "$kernel"*.deb root)

image=$work/image
mkdir -p "$image"/{bin,proc,sys,dev,run,tmp,lib,t/xdp,t/bpf,t/docs,t/examples}
cp /bin/busybox "$image/bin/"
for module in $modules; do
	find "$work/root/lib/modules" -name "$module.ko" -exec cp {} "$image/lib/" \;
done
CGO_ENABLED=0 go test -c -o "$image/t/xdp/xdp.test" ./xdp
# What the tests read, where they look for it.
cp -r examples/article "$image/t/examples/"
cp bpf/*.h "$image/t/bpf/"
cp docs/*.md "$image/t/docs/"
cp xdp/*.o xdp/*_test.go "$image/t/xdp/"
# There is no nft in there to ask for a second opinion or to lay a detour with, and nothing keeps pace with a rate under emulation, or starts an
# agent within 5 s.
cat >"$image/init" <<EOF
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp; mount -t tmpfs run /run; mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
for module in $modules; do insmod /lib/\$module.ko; done
ifconfig lo 127.0.0.1 up
uname -r
cd /t/xdp && CI=1 ./xdp.test -test.v -test.run '$tests' -test.skip 'SecondOpinion|TestRates|TestLimitsTogether|TestOneWayLimit|TestHoldIsTakenOver|TestGuard$|TestGuardBeforeRelease|TestRulesThatCannotBeReplaced' && echo "all passed"
poweroff -f
EOF
chmod +x "$image/init"
(cd "$image" && find . | cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd"

timeout 1800 qemu-system-x86_64 -accel tcg -cpu max -m 2048 -nographic -no-reboot \
	-kernel "$work"/root/boot/vmlinuz-* -initrd "$work/initrd" \
	-append "console=ttyS0 quiet panic=-1" | tee "$work/log" | grep -E '^(---|    |6\.|all|FAIL|panic)' || true
grep -q '^all passed' "$work/log"
