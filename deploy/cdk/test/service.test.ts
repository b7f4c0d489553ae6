import assert from "node:assert/strict";
import { test } from "node:test";
import { KEEP_ALIVE_S, resolve } from "../lib/config";
import { attributes, CONFIG, container, file, FULL, only, template, variables } from "./template";

test("four GPUs, port 8000, one task an instance", () => {
  const made = template();
  const { ResourceRequirements, PortMappings, Memory, Cpu } = container(made);
  assert.deepEqual(ResourceRequirements, [{ Type: "GPU", Value: "4" }]);
  assert.deepEqual(PortMappings, [{ ContainerPort: 8000, Protocol: "tcp" }]);
  assert.ok(Memory < 192 * 1024 * 0.95 && Cpu < 48 * 1024, "it fits an instance, with what the host needs");
  const { LaunchTemplateData } = only(made, "AWS::EC2::LaunchTemplate");
  assert.equal(LaunchTemplateData.InstanceType, "g5.12xlarge");
  const [parameter] = Object.values(made.toJSON().Parameters as Record<string, any>).filter(({ Type }) => /Image::Id/.test(Type));
  assert.match(parameter.Default, /^\/aws\/service\/ecs\/optimized-ami\/amazon-linux-2023\/gpu\/recommended/);
});

test("instances: metadata by token, one hop, an encrypted disk that fits the models twice", () => {
  const { MetadataOptions, BlockDeviceMappings } = only(template(), "AWS::EC2::LaunchTemplate").LaunchTemplateData;
  assert.deepEqual(MetadataOptions, { HttpPutResponseHopLimit: 1, HttpTokens: "required" });
  assert.equal(BlockDeviceMappings[0].Ebs.Encrypted, true);
  assert.ok(BlockDeviceMappings[0].Ebs.VolumeSize >= 100);
});

test("targets are judged by /ready, the container by /health", () => {
  const made = template();
  const { HealthCheckPath, Matcher, Port, TargetType } = only(made, "AWS::ElasticLoadBalancingV2::TargetGroup");
  assert.deepEqual([HealthCheckPath, Matcher, Port, TargetType], ["/ready", { HttpCode: "200" }, 8000, "ip"]);
  assert.deepEqual(container(made).HealthCheck.Command, ["CMD-SHELL", "curl -f http://localhost:8000/health || exit 1"]);
});

test("times, from the template itself: a request, the load balancer's patience, the server's, the end", () => {
  const made = template();
  const variable = variables(container(made));
  const requestS = Number(variable["NEXUS_REQUEST_TIMEOUT_MS"]) / 1000;
  const shutdownS = Number(variable["NEXUS_SHUTDOWN_TIMEOUT_MS"]) / 1000;
  const idleS = Number(attributes(only(made, "AWS::ElasticLoadBalancingV2::LoadBalancer"), "LoadBalancerAttributes")["idle_timeout.timeout_seconds"]);
  const leaveS = Number(attributes(only(made, "AWS::ElasticLoadBalancingV2::TargetGroup"), "TargetGroupAttributes")["deregistration_delay.timeout_seconds"]);
  const stopS = container(made).StopTimeout;
  assert.ok(requestS < idleS, `a request takes up to ${requestS} s, the load balancer waits ${idleS} s`);
  assert.ok(idleS < KEEP_ALIVE_S, `the load balancer keeps a connection ${idleS} s, the server ${KEEP_ALIVE_S} s`);
  assert.ok(leaveS >= requestS, `a leaving target has ${leaveS} s, a request takes ${requestS} s`);
  assert.ok(shutdownS * 0.9 >= requestS, `shutdown takes ${shutdownS} s, a request ${requestS} s`);
  assert.ok(stopS >= shutdownS + 10 && stopS <= 120, `SIGKILL after ${stopS} s, shutdown ${shutdownS} s`);
});

test("the server keeps idle connections as long as is said here", () => {
  const server = file("crates/service/src/http/server.rs");
  assert.equal(/const HEADER_TIMEOUT: Duration = Duration::from_secs\((\d+)\);/.exec(server)?.[1], String(KEEP_ALIVE_S));
  assert.equal(/const AFTER_REQUESTS: u32 = (\d+);/.exec(server)?.[1], "10");
});

test("a deployment starts before it stops, goes back by itself, and has the instances to do so", () => {
  const made = template();
  const { DeploymentConfiguration, HealthCheckGracePeriodSeconds, DesiredCount } = only(made, "AWS::ECS::Service");
  assert.deepEqual(DeploymentConfiguration.DeploymentCircuitBreaker, { Enable: true, Rollback: true });
  assert.equal(DeploymentConfiguration.MinimumHealthyPercent, 100);
  assert.equal(DeploymentConfiguration.MaximumPercent, 200);
  assert.ok(HealthCheckGracePeriodSeconds >= 300, "the models' download and load");
  assert.equal(DesiredCount, undefined, "a deployment would set back what scaling had set");
  const { MinCapacity, MaxCapacity } = only(made, "AWS::ApplicationAutoScaling::ScalableTarget");
  const instances = Number(only(made, "AWS::AutoScaling::AutoScalingGroup").MaxSize);
  assert.ok(instances >= MaxCapacity * DeploymentConfiguration.MaximumPercent / 100, "one for each task that a rollout has at once");
  assert.equal(MinCapacity, 1);
});

test("instances drain before they go", () => {
  const { AutoScalingGroupProvider } = only(template(), "AWS::ECS::CapacityProvider");
  assert.deepEqual(
    [AutoScalingGroupProvider.ManagedDraining, AutoScalingGroupProvider.ManagedTerminationProtection, AutoScalingGroupProvider.ManagedScaling.Status],
    ["ENABLED", "ENABLED", "ENABLED"]);
});

test("the service uses its cluster's instances, in private subnets", () => {
  const { CapacityProviderStrategy, NetworkConfiguration, LaunchType } = only(template(FULL), "AWS::ECS::Service");
  assert.equal(LaunchType, undefined);
  assert.equal(CapacityProviderStrategy.length, 1);
  assert.deepEqual(NetworkConfiguration.AwsvpcConfiguration.Subnets, ["subnet-0123456789abcdef1", "subnet-0123456789abcdef2"]);
});

test("the load balancer is internal unless said otherwise, and lets in whom it should", () => {
  assert.equal(only(template(), "AWS::ElasticLoadBalancingV2::LoadBalancer").Scheme, "internal");
  assert.equal(only(template(FULL), "AWS::ElasticLoadBalancingV2::LoadBalancer").Scheme, "internet-facing");
  for (const [config, cidr] of [[CONFIG, "10.0.0.0/8"], [FULL, "192.0.2.0/24"]] as const) {
    const groups = Object.values(template(config).findResources("AWS::EC2::SecurityGroup")) as any[];
    const open = groups.flatMap(({ Properties }) => Properties.SecurityGroupIngress ?? []).map(({ CidrIp }) => CidrIp);
    assert.deepEqual(open, [cidr]);
  }
});

test("/admin does not pass the load balancer", () => {
  const { Priority, Conditions, Actions } = only(template(), "AWS::ElasticLoadBalancingV2::ListenerRule");
  assert.equal(Priority, 1);
  assert.deepEqual(Conditions, [{ Field: "path-pattern", PathPatternConfig: { Values: ["/admin", "/admin/*"] } }]);
  assert.equal(Actions[0].Type, "fixed-response");
});

test("the table: its key, paid by request, with a lifetime, kept", () => {
  const made = template();
  const table = only(made, "AWS::DynamoDB::Table");
  assert.deepEqual(table.KeySchema, [{ AttributeName: "k", KeyType: "HASH" }]);
  assert.deepEqual(table.AttributeDefinitions, [{ AttributeName: "k", AttributeType: "B" }]);
  assert.equal(table.BillingMode, "PAY_PER_REQUEST");
  assert.deepEqual(table.TimeToLiveSpecification, { AttributeName: "expires", Enabled: true });
  assert.equal(table.DeletionProtectionEnabled, true);
  const [{ DeletionPolicy, UpdateReplacePolicy }] = Object.values(made.findResources("AWS::DynamoDB::Table")) as any;
  assert.deepEqual([DeletionPolicy, UpdateReplacePolicy], ["Retain", "Retain"]);
  assert.equal(table.TableName, variables(container(made))["EMBEDDING_CACHE_TABLE"]);
  assert.equal(only(template(FULL), "AWS::DynamoDB::Table").OnDemandThroughput.MaxWriteRequestUnits, 4000);
  template({ ...CONFIG, cacheTable: { name: "there", create: false } }).resourceCountIs("AWS::DynamoDB::Table", 0);
});

test("a new network keeps models and embeddings off the NAT gateway; an existing one is left as it is", () => {
  const services = Object.values(template().findResources("AWS::EC2::VPCEndpoint")).map(({ Properties }: any) => JSON.stringify(Properties.ServiceName));
  assert.ok(services.some((name) => name.includes(".s3")) && services.some((name) => name.includes(".dynamodb")));
  template(FULL).resourceCountIs("AWS::EC2::VPC", 0);
  template(FULL).resourceCountIs("AWS::EC2::NatGateway", 0);
});

test("zones that are configured are used", () => {
  const subnets = Object.values(template({ ...CONFIG, availabilityZones: ["us-east-1b", "us-east-1d"] }).findResources("AWS::EC2::Subnet")) as any[];
  assert.deepEqual(new Set(subnets.map(({ Properties }) => Properties.AvailabilityZone)), new Set(["us-east-1b", "us-east-1d"]));
});

test("logs end, and delivery never holds the service up", () => {
  const made = template();
  assert.equal(only(made, "AWS::Logs::LogGroup").RetentionInDays, 30);
  assert.equal(container(made).LogConfiguration.Options.mode, "non-blocking");
});

test("variables are those that the configuration means", () => {
  const all = variables(container(template(FULL)));
  assert.equal(all["MODEL_BUCKET"], "s3://my-model-bucket/prod");
  assert.equal(all["NEXUS_TARGETS_URL"], "s3://my-sets/nexus/sets");
  assert.equal(all["NEXUS_ADMIN_TOKEN"], undefined);
});

test("every variable is a setting of the service", () => {
  const settings = new Set([...file("README.md").matchAll(/^\| `([A-Z_]+)` \| `--/gm)].map(([, name]) => name));
  assert.ok(settings.size > 20, "the README's table was found");
  const made = container(template(FULL));
  const names = [...Object.keys(variables(made)), ...made.Secrets.map(({ Name }: any) => Name)];
  assert.deepEqual(names.filter((name) => !settings.has(name)), []);
});

/** Names as CloudFormation has them: the first letter is a capital. */
const capitals = (value: any): any =>
  Array.isArray(value) ? value.map(capitals)
    : typeof value === "object" && value !== null
      ? Object.fromEntries(Object.entries(value).map(([key, inner]) => [key[0]!.toUpperCase() + key.slice(1), capitals(inner)]))
      : value;

/** Places in the file that are filled in, and what the template has there. */
const filled = (value: any): any =>
  typeof value === "string" ? (value === "REGION" ? { Ref: "AWS::Region" } : value)
    : Array.isArray(value) ? value.map(filled)
      : typeof value === "object" ? Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, filled(inner)])) : value;

test("deploy/ecs/task-definition.json is the same task", () => {
  const { taskRoleArn, executionRoleArn, containerDefinitions, ...rest } = JSON.parse(file("deploy/ecs/task-definition.json"));
  const [{ image, logConfiguration, ...declared }, ...more] = containerDefinitions;
  assert.equal(more.length, 0);
  const made = template();
  const { TaskRoleArn, ExecutionRoleArn, ContainerDefinitions, ...properties } = only(made, "AWS::ECS::TaskDefinition");
  const { Image, LogConfiguration, ...synthesized } = ContainerDefinitions[0];
  assert.deepEqual(capitals(rest), properties);
  assert.deepEqual(capitals(filled(declared)), synthesized);
  assert.match(image, /\/nexus-ecs-service:1$/);
  assert.match(JSON.stringify(Image), /\/nexus-ecs-service:1"/);
  assert.ok(taskRoleArn && executionRoleArn && TaskRoleArn && ExecutionRoleArn);
  assert.equal(logConfiguration.logDriver, LogConfiguration.LogDriver);
  const { "awslogs-group": group, ...options } = logConfiguration.options;
  const { "awslogs-group": reference, ...expected } = LogConfiguration.Options;
  assert.deepEqual(filled(options), expected);
  assert.equal(group, only(made, "AWS::Logs::LogGroup").LogGroupName);
  assert.ok(reference.Ref);
});

test("relations that do not hold stop the synthesis, by name", () => {
  const wrong: [Parameters<typeof resolve>[0], RegExp][] = [
    [{ ...CONFIG, times: { requestTimeoutS: 120 } }, /times\.requestTimeoutS: .*504/],
    [{ ...CONFIG, times: { idleTimeoutS: 90 } }, /times\.idleTimeoutS: .*75 s/],
    [{ ...CONFIG, times: { deregistrationDelayS: 30 } }, /times\.deregistrationDelayS/],
    [{ ...CONFIG, times: { shutdownTimeoutS: 60 } }, /times\.shutdownTimeoutS/],
    [{ ...CONFIG, times: { stopTimeoutS: 105 } }, /times\.stopTimeoutS: .*SIGKILL/],
    [{ ...CONFIG, times: { stopTimeoutS: 180 } }, /times\.stopTimeoutS: expected at most 120/],
    [{ ...CONFIG, loadBalancer: { public: true } }, /loadBalancer\.public: expected a certificateArn/],
    [{ ...CONFIG, capacity: { tasksMin: 5 } }, /capacity\.tasksMin/],
    [{ ...CONFIG, logLevel: "WARNING" }, /logLevel/],
    [{ ...CONFIG, targets: { bucket: "b", prefix: "" } }, /targets\.prefix/],
    [{ ...CONFIG, models: { ...CONFIG.models, retrieverPath: "hf://owner/name" } }, /models\.retrieverPath/],
    [{ ...CONFIG, models: { ...CONFIG.models, rerankerPath: "" } }, /models\.rerankerPath/],
  ];
  for (const [config, message] of wrong) {
    assert.throws(() => resolve(config), message);
  }
});
