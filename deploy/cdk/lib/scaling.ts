// More tasks when requests wait, fewer when they do not. Steps, not target tracking: a wait does not halve when tasks
// double, and a task takes minutes to load.

import { Duration } from "aws-cdk-lib";
import * as appscaling from "aws-cdk-lib/aws-applicationautoscaling";
import * as cloudwatch from "aws-cdk-lib/aws-cloudwatch";
import { ApplicationScalingAction } from "aws-cdk-lib/aws-cloudwatch-actions";
import type * as ecs from "aws-cdk-lib/aws-ecs";
import type { Construct } from "constructs";
import type { Resolved } from "./config";

/** `wait` is the mean over the tasks of their p95 of a minute. */
export function scaling(scope: Construct, service: ecs.Ec2Service, wait: cloudwatch.IMetric, { capacity, scaling, times }: Resolved): void {
  const target = service.autoScaleTaskCount({ minCapacity: capacity.tasksMin, maxCapacity: capacity.tasksMax });

  const out = new appscaling.StepScalingAction(scope, "ScaleOut", {
    scalingTarget: target,
    adjustmentType: appscaling.AdjustmentType.CHANGE_IN_CAPACITY,
    // An instance starts and a task loads within it; asking again before would count the same wait twice.
    cooldown: Duration.seconds(times.loadTimeS),
    metricAggregationType: appscaling.MetricAggregationType.AVERAGE,
  });
  // Bounds are from the alarm's threshold.
  const steep = 3 * scaling.queueWaitHighMs;
  out.addAdjustment({ adjustment: 1, lowerBound: 0, upperBound: steep });
  out.addAdjustment({ adjustment: 2, lowerBound: steep });
  new cloudwatch.Alarm(scope, "QueueWaitScaleOut", {
    metric: wait,
    threshold: scaling.queueWaitHighMs,
    comparisonOperator: cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
    evaluationPeriods: 3,
    alarmDescription: "Not an alarm for people: adds tasks",
  }).addAlarmAction(new ApplicationScalingAction(out));

  const back = new appscaling.StepScalingAction(scope, "ScaleIn", {
    scalingTarget: target,
    adjustmentType: appscaling.AdjustmentType.CHANGE_IN_CAPACITY,
    cooldown: Duration.minutes(15),
    metricAggregationType: appscaling.MetricAggregationType.AVERAGE,
  });
  back.addAdjustment({ adjustment: -1, upperBound: 0 });
  new cloudwatch.Alarm(scope, "QueueWaitScaleIn", {
    metric: wait,
    threshold: scaling.queueWaitLowMs,
    comparisonOperator: cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD,
    evaluationPeriods: 30,
    alarmDescription: "Not an alarm for people: takes tasks away. It is in alarm for most of a quiet day",
  }).addAlarmAction(new ApplicationScalingAction(back));
}
