// The first program of the article: drops every packet. Its code is in section .text and it names no license.
#include <linux/bpf.h>

int main()
{
	return XDP_DROP;
}
