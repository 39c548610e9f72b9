// Package conformance_test runs Gateway API's conformance suite against Karst on the local cluster: cargo xtask conformance.
package conformance_test

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) {
	conformance.RunConformance(t)
}
