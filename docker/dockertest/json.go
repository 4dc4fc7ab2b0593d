package dockertest

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/vethwall/vethwall/docker"
)

type object map[string]any

// object returns the answer for a path, nil when there is no such thing; mu is held.
func (e *Engine) object(path string) any {
	switch kind, id := split(path); {
	case path == "/info":
		return object{"ServerVersion": "20.10.24", "CgroupVersion": "1", "SecurityOptions": []string{"name=seccomp,profile=default"}}
	case path == "/networks":
		list := []object{}
		for id, n := range e.networks {
			list = append(list, network(id, n))
		}
		return list
	case kind == "networks":
		if n, ok := e.networks[id]; ok {
			o := network(id, n)
			o["Containers"] = e.attached(id)
			return o
		}
	case kind == "containers" && e.raw[id] != "":
		return json.RawMessage(e.raw[id])
	case kind == "containers":
		if c, ok := e.containers[id]; ok {
			return inspect(c)
		}
	case kind == "images":
		if labels, ok := e.images[id]; ok {
			return object{"Id": id, "Os": "linux", "Config": object{"Labels": labels}}
		}
	}
	return nil
}

// list is the answer to a list of containers, of which filters may name some by their ids; mu is held.
func (e *Engine) list(filters string) []object {
	var by struct {
		ID map[string]bool `json:"id"`
	}
	_ = json.Unmarshal([]byte(filters), &by)
	out := []object{}
	for id, c := range e.containers {
		if by.ID == nil || by.ID[id] {
			out = append(out, summary(c))
		}
	}
	return out
}

// network is what a list says of one.
func network(id string, n docker.Network) object {
	options := object{}
	if n.Bridge != "" {
		options["com.docker.network.bridge.name"] = n.Bridge
	}
	return object{"Id": id, "Name": n.Name, "Driver": n.Driver, "IPAM": object{"Config": subnets(n)}, "Options": options}
}

// attached are the ends of a network: those endpoints that have a MAC, whether or not the container's process runs yet.
func (e *Engine) attached(id string) object {
	out := object{}
	for _, c := range e.containers {
		for _, ep := range c.Networks {
			if ep.MAC != nil && ep.NetworkID == id {
				end := object{"Name": c.Name, "EndpointID": ep.EndpointID, "MacAddress": ep.MAC.String()}
				for _, a := range ep.Addrs {
					if a.Is4() {
						end["IPv4Address"] = a.String() + "/24"
					} else {
						end["IPv6Address"] = a.String() + "/64"
					}
				}
				out[c.ID] = end
			}
		}
	}
	return out
}

// subnets pairs them with the gateways.
func subnets(n docker.Network) []object {
	out := []object{}
	for i, s := range n.Subnets {
		c := object{"Subnet": s.String()}
		if i < len(n.Gateways) {
			c["Gateway"] = n.Gateways[i].String()
		}
		out = append(out, c)
	}
	return out
}

// split reads /kind/id/json.
func split(path string) (kind, id string) {
	kind, id, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return kind, strings.TrimSuffix(id, "/json")
}

func summary(c docker.Container) object {
	state := "created"
	if c.Running {
		state = "running"
	}
	return object{
		"Id": c.ID, "Names": []string{"/" + c.Name}, "Labels": c.Labels, "State": state, "Image": c.Image, "ImageID": c.ImageID,
		"HostConfig": object{"NetworkMode": c.NetworkMode}, "NetworkSettings": object{"Networks": networks(c)},
	}
}

func inspect(c docker.Container) object {
	bindings, userns := object{}, "host"
	if c.UserNS { // it has one only where the engine does (Handle "/info")
		userns = ""
	}
	if c.Published {
		bindings["80/tcp"] = []object{{"HostPort": "8080"}}
	}
	return object{
		"Id": c.ID, "Name": "/" + c.Name, "Image": c.ImageID, "Config": object{"Labels": c.Labels, "Image": c.Image},
		"State":           object{"Status": map[bool]string{true: "running", false: "exited"}[c.Running], "Running": c.Running, "Pid": c.Pid, "StartedAt": c.StartedAt.Format(time.RFC3339Nano)},
		"NetworkSettings": object{"SandboxID": c.SandboxID, "SandboxKey": c.SandboxKey, "Networks": networks(c)},
		"HostConfig": object{
			"NetworkMode": c.NetworkMode, "CapAdd": c.CapAdd, "CapDrop": c.CapDrop, "Privileged": c.Privileged, "Runtime": c.Runtime,
			"UsernsMode": userns, "Dns": c.DNS, "PortBindings": bindings,
		},
	}
}

// networks keeps one address and gateway of each family, all that the API has room for.
func networks(c docker.Container) object {
	out := object{}
	for _, ep := range c.Networks {
		s := object{"NetworkID": ep.NetworkID, "EndpointID": ep.EndpointID, "MacAddress": ep.MAC.String()}
		for _, a := range ep.Addrs {
			if a.Is4() {
				s["IPAddress"] = a.String()
			} else {
				s["GlobalIPv6Address"] = a.String()
			}
		}
		for _, a := range ep.Gateways {
			if a.Is4() {
				s["Gateway"] = a.String()
			} else {
				s["IPv6Gateway"] = a.String()
			}
		}
		out[ep.Network] = s
	}
	return out
}
