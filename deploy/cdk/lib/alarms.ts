// What people are told. Each alarm's meaning and remedy are in docs/runbook.md under its name.

import { Duration } from "aws-cdk-lib";
import * as cloudwatch from "aws-cdk-lib/aws-cloudwatch";
import { SnsAction } from "aws-cdk-lib/aws-cloudwatch-actions";
import type * as elb from "aws-cdk-lib/aws-elasticloadbalancingv2";
import { HttpCodeElb, HttpCodeTarget } from "aws-cdk-lib/aws-elasticloadbalancingv2";
import * as sns from "aws-cdk-lib/aws-sns";
import { EmailSubscription } from "aws-cdk-lib/aws-sns-subscriptions";
import type { Construct } from "constructs";
import type { Resolved } from "./config";
import type { stats } from "./metrics";

/** Requests in five minutes below which a share of errors says nothing. */
const REQUESTS_MIN = 20;

export interface Watched {
  readonly balancer: elb.ApplicationLoadBalancer;
  readonly targets: elb.ApplicationTargetGroup;
  readonly stat: ReturnType<typeof stats>;
}

export function alarms(scope: Construct, { balancer, targets, stat }: Watched, config: Resolved): sns.Topic {
  const topic = new sns.Topic(scope, "Alarms", { displayName: `${config.name} alarms` });
  for (const email of config.alarms.emails) {
    topic.addSubscription(new EmailSubscription(email));
  }
  const five = Duration.minutes(5);
  const { GREATER_THAN_THRESHOLD: above, GREATER_THAN_OR_EQUAL_TO_THRESHOLD: from, LESS_THAN_THRESHOLD: below } = cloudwatch.ComparisonOperator;
  const { BREACHING: breaching, NOT_BREACHING: fine } = cloudwatch.TreatMissingData;

  function alarm(id: string, alarmDescription: string, props: Omit<cloudwatch.AlarmProps, "alarmDescription">): void {
    const made = new cloudwatch.Alarm(scope, id, { alarmDescription: `${alarmDescription}. See ${id} in docs/runbook.md`, ...props });
    made.addAlarmAction(new SnsAction(topic));
    made.addOkAction(new SnsAction(topic));
  }

  alarm("NoHealthyTargets", "Nothing answers", {
    metric: targets.metrics.healthyHostCount({ statistic: "Maximum", period: Duration.minutes(1) }),
    threshold: 1, comparisonOperator: below, evaluationPeriods: 3, treatMissingData: breaching,
  });
  alarm("TasksNotReady", "Fewer tasks are ready than there should be at least", {
    metric: targets.metrics.healthyHostCount({ statistic: "Maximum", period: Duration.minutes(1) }),
    threshold: config.capacity.tasksMin, comparisonOperator: below,
    evaluationPeriods: Math.ceil(config.times.loadTimeS / 60) + 10, treatMissingData: breaching,
  });
  alarm("UnhealthyTargets", "A task runs and is not ready for longer than loading takes", {
    metric: targets.metrics.unhealthyHostCount({ statistic: "Minimum", period: Duration.minutes(1) }),
    threshold: 0, comparisonOperator: above,
    evaluationPeriods: Math.ceil(config.times.loadTimeS / 60) + 5, treatMissingData: fine,
  });
  alarm("Errors", "Too many responses are 5xx", {
    metric: new cloudwatch.MathExpression({
      expression: `IF(requests > ${REQUESTS_MIN}, 100 * (FILL(service, 0) + FILL(balancer, 0)) / requests, 0)`,
      label: "5xx, percent",
      usingMetrics: {
        requests: balancer.metrics.requestCount({ statistic: "Sum", period: five }),
        service: balancer.metrics.httpCodeTarget(HttpCodeTarget.TARGET_5XX_COUNT, { statistic: "Sum", period: five }),
        balancer: balancer.metrics.httpCodeElb(HttpCodeElb.ELB_5XX_COUNT, { statistic: "Sum", period: five }),
      },
      period: five,
    }),
    threshold: config.alarms.errorsPercent, comparisonOperator: above, evaluationPeriods: 2, treatMissingData: fine,
  });
  alarm("Latency", "Answers are slow", {
    metric: balancer.metrics.targetResponseTime({ statistic: "p95", period: five }),
    threshold: config.alarms.latencyP95Ms / 1000, comparisonOperator: above, evaluationPeriods: 3, treatMissingData: fine,
  });
  alarm("QueueWait", "Requests wait although tasks were added, or could not be", {
    metric: stat("QueueWaitMs", "Maximum"),
    threshold: config.alarms.queueWaitMs, comparisonOperator: above, evaluationPeriods: 15, treatMissingData: fine,
  });
  alarm("NoStats", "No task logs its figures: nothing scales, and alarms on them are blind", {
    metric: stat("Requests", "SampleCount", five),
    threshold: 1, comparisonOperator: below, evaluationPeriods: 3, treatMissingData: breaching,
  });
  // Few, as the service soon stops asking a table that is missing or denied: of one task some 2 to 6 a minute are left.
  alarm("CacheFailures", "Reads or writes of the table of embeddings fail", {
    metric: stat("CacheFailures", "Sum", five),
    threshold: config.alarms.cacheFailures, comparisonOperator: from, evaluationPeriods: 3, treatMissingData: fine,
  });
  alarm("CacheBreakerOpen", "A task has stopped asking the table of embeddings", {
    metric: stat("CacheBreakerOpen", "Maximum"),
    threshold: 0, comparisonOperator: above, evaluationPeriods: 10, treatMissingData: fine,
  });
  alarm("CacheDropped", "Embeddings are computed faster than the table takes them", {
    metric: stat("CacheDropped", "Sum", five),
    threshold: 0, comparisonOperator: above, evaluationPeriods: 6, treatMissingData: fine,
  });
  // Not ThrottledRequests: of a batch that is throttled in part, it counts nothing.
  const throttles = (metricName: string) => new cloudwatch.Metric({
    namespace: "AWS/DynamoDB", metricName, dimensionsMap: { TableName: config.cacheTable.name }, statistic: "Sum", period: five,
  });
  alarm("TableThrottled", "DynamoDB refuses a part of the reads or writes", {
    metric: new cloudwatch.MathExpression({
      expression: "FILL(reads, 0) + FILL(writes, 0)",
      label: "Throttled",
      usingMetrics: { reads: throttles("ReadThrottleEvents"), writes: throttles("WriteThrottleEvents") },
      period: five,
    }),
    threshold: 100, comparisonOperator: above, evaluationPeriods: 3, treatMissingData: fine,
  });
  return topic;
}
