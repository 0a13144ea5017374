// Package sim plays pods that come and go on one node against a node agent's way to hold addresses ready for them, and
// counts what that costs of EC2. Time is virtual and every run is the same: it needs neither AWS nor a clock.
//
// Two agents are played. Ours is ipamd/pool and ipamd/placement themselves, driven as ipamd drives them: it is the
// decisions that are measured, so this room changes when that loop does (a test in ipamd runs the real agent beside it).
// Todays is a model of the agent that EKS ships, made from its documentation and from what it is seen to do; where
// something is not known it is taken to be the cheaper.
package sim
