import assert from "node:assert/strict";
import { test } from "node:test";
import { STATS } from "../lib/metrics";
import { file, FULL, only, template } from "./template";

const alarms = (of = template()): [string, any][] =>
  Object.entries(of.findResources("AWS::CloudWatch::Alarm")).map(([id, { Properties }]: [string, any]) => [id.replace(/[0-9A-F]{8}$/, ""), Properties]);

/** Alarms that tell people, by name. */
const told = (of = template()): Record<string, any> =>
  Object.fromEntries(alarms(of).filter(([id]) => !id.startsWith("QueueWaitScale")));

test("every alarm has an action", () => {
  const all = alarms();
  assert.equal(all.length, 13);
  for (const [id, { AlarmActions }] of all) {
    assert.equal(AlarmActions?.length, 1, id);
  }
});

test("alarms for people go to the topic, when they begin and when they end", () => {
  const made = template();
  const [topic] = Object.keys(made.findResources("AWS::SNS::Topic"));
  for (const [id, { AlarmActions, OKActions }] of Object.entries(told(made))) {
    assert.deepEqual([AlarmActions, OKActions], [[{ Ref: topic }], [{ Ref: topic }]], id);
  }
  template(FULL).hasResourceProperties("AWS::SNS::Subscription", { Protocol: "email", Endpoint: "someone@example.com" });
});

test("what can go wrong is watched", () => {
  assert.deepEqual(Object.keys(told()).sort(), [
    "CacheBreakerOpen", "CacheDropped", "CacheFailures", "Errors", "Latency", "NoHealthyTargets", "NoStats", "QueueWait",
    "TableThrottled", "TasksNotReady", "UnhealthyTargets",
  ]);
});

test("no news is bad news where a dead service sends none", () => {
  const breaching = Object.entries(told()).filter(([, { TreatMissingData }]) => TreatMissingData === "breaching").map(([id]) => id);
  assert.deepEqual(breaching.sort(), ["NoHealthyTargets", "NoStats", "TasksNotReady"]);
});

test("errors count the service's and the load balancer's, and need some requests", () => {
  const { Metrics, Threshold } = told()["Errors"];
  const names = Metrics.filter(({ MetricStat }: any) => MetricStat).map(({ MetricStat }: any) => MetricStat.Metric.MetricName);
  assert.deepEqual(names.sort(), ["HTTPCode_ELB_5XX_Count", "HTTPCode_Target_5XX_Count", "RequestCount"]);
  assert.match(Metrics.find(({ Expression }: any) => Expression).Expression, /^IF\(requests > 20, 100 \* /);
  assert.equal(Threshold, 2);
});

test("throttling of a part of a batch is seen", () => {
  const names = told()["TableThrottled"].Metrics.filter(({ MetricStat }: any) => MetricStat).map(({ MetricStat }: any) => MetricStat.Metric.MetricName);
  assert.deepEqual(names.sort(), ["ReadThrottleEvents", "WriteThrottleEvents"]);
});

test("one task that may not ask its table is told of within 15 minutes, and one bad minute is not", () => {
  const { Threshold, ComparisonOperator, Period, EvaluationPeriods, DatapointsToAlarm, Statistic } = told()["CacheFailures"];
  const [, seconds] = /open_max: Duration::from_secs\((\d+)\)/.exec(file("crates/storage/src/aws/dynamodb/breaker.rs"))!;
  assert.deepEqual([Statistic, ComparisonOperator], ["Sum", "GreaterThanOrEqualToThreshold"]);
  assert.ok(Threshold <= Period / Number(seconds), "that many times at least the table is asked");
  assert.ok(Period * EvaluationPeriods <= 15 * 60);
  // A bad minute is in two periods at most.
  assert.ok(EvaluationPeriods >= 3 && DatapointsToAlarm === undefined);
});

test("each figure of the stats line is a metric", () => {
  const filters = Object.values(template().findResources("AWS::Logs::MetricFilter")).map(({ Properties }: any) => Properties);
  const found = Object.fromEntries(filters.map(({ FilterPattern, MetricTransformations: [{ MetricName, MetricNamespace, MetricValue }] }: any) => {
    assert.equal(MetricNamespace, "Nexus");
    assert.equal(FilterPattern, '{ $.message = "stats" }');
    return [MetricValue.slice(2), MetricName];
  }));
  assert.deepEqual(found, STATS);
});

test("alarms and scaling read metrics that are made", () => {
  const namespaces = { Nexus: template(), "Nexus/Everything": template(FULL) };
  for (const [namespace, made] of Object.entries(namespaces)) {
    const mine = alarms(made).map(([, alarm]) => alarm).filter(({ Namespace }) => !/^AWS\//.test(Namespace ?? "AWS/"));
    assert.equal(mine.length, 7);
    for (const { Namespace, MetricName } of mine) {
      assert.equal(Namespace, namespace);
      assert.ok(Object.values(STATS).includes(MetricName), MetricName);
    }
  }
});

test("tasks are added when requests wait, and taken away when they have not for long", () => {
  const made = template();
  const scale = Object.fromEntries(alarms(made).filter(([id]) => id.startsWith("QueueWaitScale")));
  const { QueueWaitScaleOut: out, QueueWaitScaleIn: back } = scale;
  assert.equal(out.MetricName, "QueueWaitMs");
  assert.equal(back.MetricName, "QueueWaitMs");
  assert.ok(back.Threshold < out.Threshold && back.EvaluationPeriods > out.EvaluationPeriods);
  const policies = made.findResources("AWS::ApplicationAutoScaling::ScalingPolicy");
  const steps = (alarm: any) => (policies[alarm.AlarmActions[0].Ref] as any).Properties.StepScalingPolicyConfiguration;
  assert.deepEqual(steps(out).StepAdjustments.map(({ ScalingAdjustment }: any) => ScalingAdjustment), [1, 2]);
  assert.deepEqual(steps(back).StepAdjustments.map(({ ScalingAdjustment }: any) => ScalingAdjustment), [-1]);
  assert.ok(steps(out).Cooldown >= only(made, "AWS::ECS::Service").HealthCheckGracePeriodSeconds);
});

test("the runbook says what each alarm means", () => {
  const runbook = file("docs/runbook.md");
  for (const id of Object.keys(told())) {
    assert.match(runbook, new RegExp(`^\\| \`${id}\` \\|`, "m"), id);
  }
});
