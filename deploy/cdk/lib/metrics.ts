// Metrics from the "stats" line that each task logs once a minute. What the line calls its counters is the service's:
// a minute's worth each, not totals since the start.

import { Duration } from "aws-cdk-lib";
import * as cloudwatch from "aws-cdk-lib/aws-cloudwatch";
import * as logs from "aws-cdk-lib/aws-logs";
import type { Resolved } from "./config";

/** Field of the line, name of the metric. */
export const STATS = {
  queue_wait_ms_p95: "QueueWaitMs",
  requests: "Requests",
  requests_failed: "RequestsFailed",
  replicas_up: "ReplicasUp",
  batches: "Batches",
  batch_tokens: "BatchTokens",
  device_retries: "DeviceRetries",
  device_failures: "DeviceFailures",
  cache_hits: "CacheHits",
  cache_misses: "CacheMisses",
  cache_failures: "CacheFailures",
  cache_dropped: "CacheDropped",
  cache_breaker_open: "CacheBreakerOpen",
} as const;

export type Stat = (typeof STATS)[keyof typeof STATS];

/** Turns the lines into metrics. Returns one by its name. */
export function stats(group: logs.LogGroup, { name }: Resolved): (metric: Stat, statistic: string, period?: Duration) => cloudwatch.Metric {
  // Deployments have namespaces of their own: a metric filter has no dimension for the name of a stack.
  const namespace = name === "Nexus" ? "Nexus" : `Nexus/${name}`;
  for (const [field, metricName] of Object.entries(STATS)) {
    group.addMetricFilter(metricName, {
      // A line without the field adds nothing to the metric.
      filterPattern: logs.FilterPattern.stringValue("$.message", "=", "stats"),
      metricNamespace: namespace,
      metricName,
      metricValue: `$.${field}`,
    });
  }
  return (metricName, statistic, period = Duration.minutes(1)) => new cloudwatch.Metric({ namespace, metricName, statistic, period });
}
