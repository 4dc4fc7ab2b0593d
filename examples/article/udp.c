// The second program of the article: drops UDP. It reads no ethertype, no VLAN tag and no IPv6: what
// vethwall's own programs do about those is in docs/packets.md.
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/if_ether.h>
#include <linux/ip.h>

#define SEC(NAME) __attribute__((section(NAME), used))

SEC("dropper_main")
int dropper(struct xdp_md *ctx)
{
	int ipsize = 0;

	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;

	struct ethhdr *eth = data;

	ipsize = sizeof(*eth);

	struct iphdr *ip = data + ipsize;
	ipsize += sizeof(struct iphdr);
	if (data + ipsize > data_end) {
		return XDP_PASS;
	}

	if (ip->protocol == IPPROTO_UDP) {
		return XDP_DROP;
	}
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
