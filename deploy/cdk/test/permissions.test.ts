import assert from "node:assert/strict";
import { test } from "node:test";
import type { Template } from "aws-cdk-lib/assertions";
import { file, CONFIG, FULL, only, template } from "./template";

const OF_TASKS = "TaskTaskRole";

/** Each statement of each policy, as [policy, statement]. */
function statements(of: Template): [string, any][] {
  const policies = Object.entries(of.findResources("AWS::IAM::Policy"));
  return policies.flatMap(([id, { Properties }]: [string, any]) =>
    Properties.PolicyDocument.Statement.map((statement: any) => [id, statement] as [string, any]));
}

function ofTasks(of: Template): Record<string, any> {
  return Object.fromEntries(statements(of).filter(([id]) => id.startsWith(OF_TASKS)).map(([, statement]) => [statement.Sid ?? "ByCdk", statement]));
}

const list = (value: unknown): any[] => (Array.isArray(value) ? value : [value]);

/** An ARN with its references spelled out. */
const flat = (value: any): string =>
  typeof value === "string" ? value
    : value["Fn::Join"] ? value["Fn::Join"][1].map(flat).join("") : `\${${value.Ref ?? value["Fn::GetAtt"].join(".")}}`;

/** What `executeCommand` lets tasks do, and nothing else does. */
const CHANNELS = [
  "ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel", "ssmmessages:OpenControlChannel", "ssmmessages:OpenDataChannel",
];

// AWS knows no resource for all but the last line, and holds that to the cluster by a condition.
const ON_EVERYTHING = [
  "ecr:GetAuthorizationToken", "ecs:DiscoverPollEndpoint", ...CHANNELS,
  "ecs:Poll", "ecs:StartTelemetrySession", "ecs:UpdateContainerInstancesState",
];

for (const [name, config] of [["defaults", CONFIG], ["everything", FULL]] as const) {
  test(`no wildcard but those that AWS asks for (${name})`, () => {
    const found = statements(template(config));
    assert.ok(found.length >= 8, "policies were found");
    for (const [id, { Action, Resource, Condition, Effect }] of found) {
      assert.equal(Effect, "Allow");
      for (const action of list(Action)) {
        assert.doesNotMatch(action, /\*/, `${id}: ${action}`);
        if (list(Resource).includes("*")) {
          assert.ok(ON_EVERYTHING.includes(action), `${id}: ${action} on every resource`);
          if (/^ecs:(Poll|Start|Update)/.test(action)) {
            assert.ok(Condition?.ArnEquals?.["ecs:cluster"], `${id}: ${action} has no condition`);
          }
        }
      }
    }
  });

  test(`no managed policies, which have wildcards of their own (${name})`, () => {
    for (const [id, { Properties }] of Object.entries(template(config).findResources("AWS::IAM::Role")) as [string, any][]) {
      assert.equal(Properties.ManagedPolicyArns, undefined, id);
      assert.equal(Properties.Policies, undefined, id);
    }
  });
}

test("tasks read the models' folders and know which files are missing", () => {
  const { ReadModels, ListModels } = ofTasks(template());
  assert.equal(ReadModels.Action, "s3:GetObject");
  assert.deepEqual(ReadModels.Resource.map(flat), [
    "arn:${AWS::Partition}:s3:::my-model-bucket/models/qwen-embedding-8b/*",
    "arn:${AWS::Partition}:s3:::my-model-bucket/models/modernbert-reranker/*",
  ]);
  assert.equal(ListModels.Action, "s3:ListBucket");
  assert.equal(flat(ListModels.Resource), "arn:${AWS::Partition}:s3:::my-model-bucket");
  assert.deepEqual(ListModels.Condition, {
    StringLikeIfExists: {
      "s3:prefix": [
        "models/qwen-embedding-8b", "models/qwen-embedding-8b/*", "models/modernbert-reranker", "models/modernbert-reranker/*",
      ],
    },
  });
});

test("tasks read and write embeddings and nothing else of the table", () => {
  const { EmbeddingCache } = ofTasks(template());
  assert.deepEqual(EmbeddingCache.Action, ["dynamodb:BatchGetItem", "dynamodb:BatchWriteItem"]);
  assert.match(flat(EmbeddingCache.Resource), /:table\/nexus-embedding-cache$/);
});

test("what is not configured is not allowed", () => {
  assert.deepEqual(Object.keys(ofTasks(template())), ["ReadModels", "ListModels", "EmbeddingCache"]);
  assert.deepEqual(Object.keys(ofTasks(template(FULL))),
    ["ReadModels", "ListModels", "DecryptModels", "TargetSets", "ListTargetSets", "KeyOfTargetSets", "EmbeddingCache", "ByCdk"]);
});

test("commands in a container: four channels, and no log groups", () => {
  const { ByCdk } = ofTasks(template(FULL));
  assert.deepEqual([...ByCdk.Action].sort(), CHANNELS);
  const everywhere = Object.values(ofTasks(template(FULL))).filter(({ Resource }) => list(Resource).includes("*"));
  assert.deepEqual(everywhere, [ByCdk]);
  assert.deepEqual(only(template(FULL), "AWS::ECS::Cluster").Configuration.ExecuteCommandConfiguration, { Logging: "NONE" });
});

test("keys: the models' decrypts, the target sets' encrypts too, and neither is another", () => {
  const { DecryptModels, KeyOfTargetSets } = ofTasks(template(FULL));
  assert.deepEqual([DecryptModels.Action, DecryptModels.Resource], ["kms:Decrypt", FULL.models.kmsKeyArn]);
  assert.deepEqual([KeyOfTargetSets.Action, KeyOfTargetSets.Resource], [["kms:Decrypt", "kms:GenerateDataKey"], FULL.targets!.kmsKeyArn]);
  assert.ok(!("KeyOfTargetSets" in ofTasks(template({ ...CONFIG, targets: { bucket: "b", prefix: "sets" } }))));
});

test("target sets are written below their prefix, models nowhere", () => {
  const { TargetSets, ListTargetSets, ReadModels } = ofTasks(template(FULL));
  assert.deepEqual(list(TargetSets.Resource).map(flat), ["arn:${AWS::Partition}:s3:::my-sets/nexus/sets/*"]);
  assert.deepEqual(TargetSets.Action, ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]);
  assert.deepEqual(ListTargetSets.Condition, { StringLikeIfExists: { "s3:prefix": ["nexus/sets", "nexus/sets/*"] } });
  assert.ok(ReadModels.Resource.map(flat).every((arn: string) => arn.includes("my-model-bucket/prod/models/")));
});

test("the admin token comes from its secret and stands nowhere in the template", () => {
  const text = JSON.stringify(template(FULL).findResources("AWS::ECS::TaskDefinition"));
  assert.match(text, /"Secrets":\[\{"Name":"NEXUS_ADMIN_TOKEN"/);
  const reads = statements(template(FULL)).filter(([, { Action }]) => list(Action).includes("secretsmanager:GetSecretValue"));
  assert.equal(reads.length, 1);
  assert.match(reads[0]![0], /ExecutionRole/);
  assert.match(flat(reads[0]![1].Resource), /:secret:nexus\/admin-token-\?{6}$/);
});

test("the runbook's table names every action of the tasks, and no other", () => {
  const table = /^The task's role:$(.*)^The execution role/ms.exec(file("docs/runbook.md"))![1]!;
  const named = [...table.matchAll(/`([a-z0-9]+:[A-Z]\w+)`/g)].map(([, action]) => action);
  const actions = Object.values(ofTasks(template(FULL))).flatMap(({ Action }) => list(Action));
  assert.deepEqual([...new Set(named)].sort(), [...new Set(actions)].sort());
});
