// Package aws builds the EC2 and instance-metadata clients that the node agent and the controller use, and holds what
// both have to know about EC2: instance types as data, and the meaning of error codes.
//
// Clients come with a time limit per attempt, bounded retries and metrics. Deciding what to call belongs to the callers,
// each of which declares its own small interface over *ec2.Client. The CNI executable doesn't import this package: it
// would pay for the SDK at every start.
package aws
