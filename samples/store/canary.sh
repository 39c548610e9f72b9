#!/bin/sh
# A canary release by weights: more and more requests go to the new release, as long as it answers them; else all go back.
#
#   canary.sh NAMESPACE SERVICE STABLE NEW [WAYPOINT]
#
# Needs: a waypoint (of the name WAYPOINT, else "waypoint") for the namespace, a DestinationRule with subsets STABLE and NEW, which are
# also the releases (label "version") of the pods. Writes the VirtualService SERVICE. Judges by what the waypoint counts.
#   STEPS    percentages for the new release       (5 25 50 100)
#   MIN      requests that decide about a step     (50)
#   LIMIT    errors (5xx) of a hundred that may be (1)
#   PATIENCE seconds for MIN requests              (120)
#   KUBECTL  how kubectl is called                 (kubectl)
# Exit status: 0 the new release has all requests; 1 it was taken back; 2 wrong usage, or something could not be read.
set -eu

[ $# -ge 4 ] || { sed -n '4s/^# *//p' "$0" >&2; exit 2; }
namespace=$1 service=$2 stable=$3 new=$4 waypoint=${5:-waypoint}
KUBECTL=${KUBECTL:-kubectl}

# All requests but so many of a hundred to the stable release.
route() {
  $KUBECTL -n "$namespace" apply -f - >/dev/null <<EOF
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: $service}
spec:
  hosts: [$service]
  http:
  - route:
    - {destination: {host: $service, subset: $stable}, weight: $((100 - $1))}
    - {destination: {host: $service, subset: $new}, weight: $1}
EOF
}

# "REQUESTS ERRORS" of the new release, over all pods of the waypoint.
counted() {
  pods=$($KUBECTL -n "$namespace" get pods -l "gateway.networking.k8s.io/gateway-name=$waypoint" \
    --field-selector=status.phase=Running -o 'jsonpath={.items[*].metadata.name}')
  [ -n "$pods" ] || { echo "waypoint $namespace/$waypoint has no pods" >&2; return 2; }
  for p in $pods; do
    $KUBECTL get --raw "/api/v1/namespaces/$namespace/pods/$p:15020/proxy/stats/prometheus"
  done | awk -v service="destination_service_name=\"$service\"" -v version="destination_version=\"$new\"" '
    index($0, "istio_requests_total{") == 1 && index($0, service) && index($0, version) {
      all += $NF
      if ($0 ~ /response_code="5/) bad += $NF
    }
    END { printf "%d %d\n", all, bad }'
}

back() {
  echo "$1: back to $stable"
  route 0
  exit 1
}

for percent in ${STEPS:-5 25 50 100}; do
  before=$(counted) || exit 2
  route "$percent"
  waited=0 all=0
  while [ "$all" -lt "${MIN:-50}" ]; do
    [ "$waited" -lt "${PATIENCE:-120}" ] || back "only $all requests in $waited s at $percent %"
    sleep 1
    waited=$((waited + 1))
    now=$(counted) || back "the waypoint does not say what it has counted"
    all=$((${now% *} - ${before% *})) bad=$((${now#* } - ${before#* }))
    # A waypoint that has begun anew counts from nothing.
    [ "$all" -ge 0 ] || { before="0 0"; all=0; }
  done
  echo "$percent % to $new: $all requests, $bad failed"
  [ $((bad * 100)) -le $((all * ${LIMIT:-1})) ] || back "$bad of $all requests to $new failed"
done
echo "$service is $new"
