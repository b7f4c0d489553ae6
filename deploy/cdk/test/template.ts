// What the tests share: the template of a configuration, and what the repository says elsewhere.

import { readFileSync } from "node:fs";
import { resolve as path } from "node:path";
import { App } from "aws-cdk-lib";
import { Template } from "aws-cdk-lib/assertions";
import { type Config, resolve } from "../lib/config";
import { NexusStack } from "../lib/stack";

export const CONFIG: Config = {
  image: { repository: "nexus-ecs-service", tag: "1" },
  models: { bucket: "my-model-bucket", retrieverPath: "models/qwen-embedding-8b/", rerankerPath: "models/modernbert-reranker/" },
  cacheTable: { name: "nexus-embedding-cache", create: true },
};

/** Everything optional is there. */
export const FULL: Config = {
  ...CONFIG,
  name: "Everything",
  models: { ...CONFIG.models, prefix: "prod", kmsKeyArn: "arn:aws:kms:us-east-1:111122223333:key/01234567-89ab-cdef-0123-456789abcdef" },
  cacheTable: { name: "embeddings", create: true, writeUnitsMax: 4000 },
  targets: { bucket: "my-sets", prefix: "nexus/sets", kmsKeyArn: "arn:aws:kms:us-east-1:111122223333:key/fedcba98-7654-3210-fedc-ba9876543210" },
  adminTokenSecret: "nexus/admin-token",
  executeCommand: true,
  loadBalancer: { public: true, certificateArn: "arn:aws:acm:us-east-1:111122223333:certificate/01234567-89ab-cdef-0123-456789abcdef", allowedCidrs: ["192.0.2.0/24"] },
  vpc: { id: "vpc-0123456789abcdef0", availabilityZones: ["us-east-1a", "us-east-1b"], privateSubnetIds: ["subnet-0123456789abcdef1", "subnet-0123456789abcdef2"], publicSubnetIds: ["subnet-0123456789abcdef3", "subnet-0123456789abcdef4"] },
  alarms: { emails: ["someone@example.com"] },
};

const synthesized = new Map<Config, Template>();

/** The template of a configuration; synthesized once, as tests only read it. */
export function template(config: Config = CONFIG): Template {
  let made = synthesized.get(config);
  if (!made) {
    const { context } = JSON.parse(file("deploy/cdk/cdk.json"));
    made = Template.fromStack(new NexusStack(new App({ context }), resolve(config)));
    synthesized.set(config, made);
  }
  return made;
}

/** A file of the repository, by its path from the root. Tests run from build/test. */
export function file(name: string): string {
  return readFileSync(path(__dirname, "../../../..", name), "utf8");
}

/** The one resource of a type. */
export function only(of: Template, type: string): any {
  const found = Object.values(of.findResources(type));
  if (found.length !== 1) {
    throw new Error(`${found.length} resources of type ${type}`);
  }
  return found[0]!["Properties"];
}

/** The one container of the one task definition. */
export function container(of: Template): any {
  return only(of, "AWS::ECS::TaskDefinition").ContainerDefinitions[0];
}

/** The variables of a container, as a record. */
export function variables(container: any): Record<string, unknown> {
  return Object.fromEntries(container.Environment.map(({ Name, Value }: any) => [Name, Value]));
}

/** Attributes of a load balancer or a target group. */
export function attributes(properties: any, name: "LoadBalancerAttributes" | "TargetGroupAttributes"): Record<string, string> {
  return Object.fromEntries(properties[name].map(({ Key, Value }: any) => [Key, Value]));
}
