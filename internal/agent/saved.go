package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
)

// adopt takes over what an agent before this one had recorded. What is damaged is of no use to anybody.
func (a *agent) adopt() {
	records, err := a.kernel.Records()
	if err != nil {
		a.log.Warn("cannot read the records of the agent before this one", "error", err)
	}
	for _, ifindex := range a.kernel.Filtered() {
		a.strays[ifindex] = true
	}
	for id, text := range records {
		if r, err := ParseRecord(text); err == nil {
			a.records[id] = string(text)
			for _, i := range r.Interfaces {
				delete(a.strays, i.Ifindex)
			}
		} else if err := a.kernel.DeleteRecord(id); err != nil {
			a.log.Warn("cannot delete a damaged record", "id", short(id), "error", err)
		}
	}
}

// anyStrays reports whether a device has a filter still that an agent before this one has recorded of nobody: it may be any container's, and that
// need not ask for one.
func (a *agent) anyStrays() bool {
	maps.DeleteFunc(a.strays, func(ifindex int, _ bool) bool { return !a.kernel.Filters(ifindex) })
	return len(a.strays) > 0
}

// save writes a record that has changed, and tells the log what a user would want to know.
func (a *agent) save(c *container, r Record) {
	if text := r.encode(); string(text) != c.saved {
		if err := a.kernel.SaveRecord(c.ID, text); err != nil {
			a.log.Warn("cannot write the record", "container", c.Name, "error", err)
		} else {
			c.saved = string(text)
		}
	}
	before := c.told
	c.told = r
	if slices.ContainsFunc(r.Interfaces, func(i Interface) bool { return i.Error == underWay }) {
		return // there is more to tell in a moment
	}
	if before.State != r.State || before.Error != r.Error || before.Policy != r.Policy || !slices.Equal(before.Interfaces, r.Interfaces) {
		a.tellState(c, r)
	}
	for _, w := range r.Warnings {
		if !slices.Contains(before.Warnings, w) {
			a.log.Warn(w, "container", c.Name, "id", short(c.ID))
		}
	}
}

func (a *agent) tellState(c *container, r Record) {
	level, why := slog.LevelInfo, r.Error
	if r.State != Enforced && r.State != Audit {
		level = slog.LevelWarn
	}
	for _, i := range r.Interfaces {
		switch {
		case why == "":
			why = i.Error
		case i.State == Partial && !strings.Contains(why, i.Error): // what is said first may be that it is closed
			why += "; " + i.Error
		}
		if i.State == Pending && i.Ifindex != 0 {
			level, why = slog.LevelError, fmt.Sprintf("%s: %s", i.Ifname, i.Error)
		}
	}
	args := []any{"container", c.Name, "id", short(c.ID), "policy", r.Policy}
	if why != "" {
		args = append(args, "why", why)
	}
	a.log.Log(context.Background(), level, string(r.State), args...)
}

// forget removes the record of a container that does not run or asks for nothing. Its filters go with its devices.
func (a *agent) forget(c *container) {
	c.told = Record{}
	a.giveUp(c, nil)
	a.closeResolverTo(c) // counted as nobody's from now on
	maps.DeleteFunc(c.late, func(ifindex int, _ uint64) bool { return !a.kernel.Filters(ifindex) })
	if c.saved == "" {
		return
	}
	if err := a.kernel.DeleteRecord(c.ID); err != nil {
		a.log.Warn("cannot delete the record", "container", c.Name, "error", err)
		return
	}
	c.saved = ""
}

// forgetOrphans deletes the records of containers that Docker does not list, once none of their devices is left. That
// a container is missing from an answer is not enough.
func (a *agent) forgetOrphans() {
	if a.session == nil || !a.session.listed {
		return
	}
	// An agent before this one has closed the resolver to containers that may have gone since.
	known := func(id string) bool {
		return a.containers[id] != nil || a.records[id] != "" || a.session.lists < ghostLists && !a.plain[id]
	}
	if err := a.kernel.SweepResolver(known); err != nil {
		a.log.Warn("cannot open the engine's resolver to containers that are gone", "error", err)
	}
	ended := func(text string) bool {
		r, _ := ParseRecord([]byte(text))
		return !slices.ContainsFunc(r.Interfaces, func(i Interface) bool { return a.kernel.Filters(i.Ifindex) })
	}
	if records, err := a.kernel.Records(); err != nil {
		a.log.Warn("cannot read the records", "error", err)
	} else {
		a.mendRecords(records)
	}
	for _, c := range a.containers {
		if c.missing > 0 && c.saved != "" && ended(c.saved) {
			a.forget(c)
		}
	}
	for id, text := range a.records {
		if !ended(text) {
			continue
		}
		if err := a.kernel.DeleteRecord(id); err != nil {
			a.log.Warn("cannot delete the record", "id", short(id), "error", err)
			continue
		}
		delete(a.records, id)
	}
}

// mendRecords deletes the records that are damaged, and has those written anew that somebody has damaged or removed.
func (a *agent) mendRecords(records map[string][]byte) {
	for id, text := range records {
		if text != nil {
			continue
		}
		if err := a.kernel.DeleteRecord(id); err != nil {
			a.log.Warn("cannot delete a damaged record", "id", short(id), "error", err)
		}
		delete(records, id)
	}
	for _, c := range a.containers {
		if c.saved != "" && c.saved != string(records[c.ID]) {
			c.saved = ""
			a.dirty[c.ID] = true
		}
	}
}
