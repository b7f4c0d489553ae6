// Nexus on ECS: the parts put together, and what they print.

import { CfnOutput, RemovalPolicy, Stack, type StackProps } from "aws-cdk-lib";
import * as dynamodb from "aws-cdk-lib/aws-dynamodb";
import type * as ecs from "aws-cdk-lib/aws-ecs";
import * as logs from "aws-cdk-lib/aws-logs";
import type { Construct } from "constructs";
import { alarms } from "./alarms";
import { cluster, network } from "./capacity";
import { type Resolved } from "./config";
import { stats } from "./metrics";
import { grant } from "./permissions";
import { scaling } from "./scaling";
import { loadBalancer, service } from "./service";
import { taskDefinition } from "./task";

export class NexusStack extends Stack {
  private readonly zones: readonly string[] | undefined;

  constructor(scope: Construct, config: Resolved, props?: StackProps) {
    super(scope, config.name, { description: "Nexus: embed, retrieve, rerank", ...props });
    this.zones = config.availabilityZones;

    const logGroup = new logs.LogGroup(this, "Logs", {
      logGroupName: `/ecs/${config.name === "Nexus" ? "nexus-ecs-service" : config.name}`,
      retention: config.logRetentionDays as logs.RetentionDays,
      removalPolicy: RemovalPolicy.DESTROY,
    });
    if (config.cacheTable.create) {
      table(this, config);
    }

    const vpc = network(this, config);
    const capacity = cluster(this, vpc, config);
    const task = taskDefinition(this, config, logGroup);
    grant(this, task.taskRole, config);
    const running: ecs.Ec2Service = service(this, vpc, capacity.cluster, capacity.provider, task, config);
    const { balancer, targets } = loadBalancer(this, vpc, running, config);

    const stat = stats(logGroup, config);
    scaling(this, running, stat("QueueWaitMs", "Average"), config);
    const topic = alarms(this, { balancer, targets, stat }, config);

    const scheme = config.loadBalancer.certificateArn ? "https" : "http";
    new CfnOutput(this, "Url", { value: `${scheme}://${balancer.loadBalancerDnsName}`, description: "Where the service answers" });
    new CfnOutput(this, "AlarmsTopic", { value: topic.topicArn, description: "Subscribe to it to hear of alarms" });
    new CfnOutput(this, "ClusterName", { value: capacity.cluster.clusterName });
    new CfnOutput(this, "ServiceName", { value: running.serviceName });
    new CfnOutput(this, "LogGroupName", { value: logGroup.logGroupName });
    new CfnOutput(this, "TaskRoleArn", { value: task.taskRole.roleArn, description: "For bucket policies and keys" });
  }

  /** The zones of the configuration. Otherwise the stack names none, and AWS chooses at deployment. */
  get availabilityZones(): string[] {
    return this.zones ? [...this.zones] : super.availabilityZones;
  }
}

/** The table as `nexus cache create-table` makes it. */
function table(scope: Construct, { cacheTable }: Resolved): dynamodb.Table {
  return new dynamodb.Table(scope, "EmbeddingCache", {
    tableName: cacheTable.name,
    partitionKey: { name: "k", type: dynamodb.AttributeType.BINARY },
    billingMode: dynamodb.BillingMode.PAY_PER_REQUEST,
    maxWriteRequestUnits: cacheTable.writeUnitsMax,
    timeToLiveAttribute: "expires",
    // It can be computed again; but not by accident.
    pointInTimeRecoverySpecification: { pointInTimeRecoveryEnabled: false },
    deletionProtection: true,
    removalPolicy: RemovalPolicy.RETAIN,
  });
}
