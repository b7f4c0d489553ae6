// The task: what runs, with which variables, on how many GPUs. The same as ../ecs/task-definition.json where they overlap,
// which a test compares.

import { Duration, Stack } from "aws-cdk-lib";
import * as ecr from "aws-cdk-lib/aws-ecr";
import * as ecs from "aws-cdk-lib/aws-ecs";
import type * as logs from "aws-cdk-lib/aws-logs";
import * as secretsmanager from "aws-cdk-lib/aws-secretsmanager";
import type { Construct } from "constructs";
import type { Resolved } from "./config";

export const PORT = 8000;
export const CONTAINER = "nexus";

/** Folder of models, kernels and embeddings in the image: NEXUS_CACHE_DIR there. */
const CACHE_FOLDER = "/var/cache/nexus";

/** The variables of the service. */
export function environment(config: Resolved, region: string): Record<string, string> {
  const { models, targets, times } = config;
  return {
    AWS_REGION: region,
    MODEL_BUCKET: models.prefix ? `s3://${models.bucket}/${models.prefix}` : models.bucket,
    RETRIEVER_MODEL_PATH: models.retrieverPath,
    RERANKER_MODEL_PATH: models.rerankerPath,
    EMBEDDING_CACHE_TABLE: config.cacheTable.name,
    LOG_LEVEL: config.logLevel,
    NEXUS_REQUEST_TIMEOUT_MS: String(times.requestTimeoutS * 1000),
    NEXUS_SHUTDOWN_TIMEOUT_MS: String(times.shutdownTimeoutS * 1000),
    ...(targets && { NEXUS_TARGETS_URL: `s3://${targets.bucket}/${targets.prefix}` }),
  };
}

export function taskDefinition(scope: Construct, config: Resolved, logGroup: logs.ILogGroup): ecs.Ec2TaskDefinition {
  const { capacity, times } = config;
  const task = new ecs.Ec2TaskDefinition(scope, "Task", {
    family: "nexus-ecs-service",
    // A network interface and a security group of its own; containers get their role from ECS and not from the instance.
    networkMode: ecs.NetworkMode.AWS_VPC,
    volumes: [{
      // Outlives the task, so that the next one on the instance finds the models. A volume of Docker's own belongs to the
      // image's user when it is new; a folder of the host would belong to root.
      name: "cache",
      dockerVolumeConfiguration: { scope: ecs.Scope.SHARED, autoprovision: true, driver: "local" },
    }],
  });
  const repository = ecr.Repository.fromRepositoryName(scope, "Repository", config.image.repository);
  const container = task.addContainer(CONTAINER, {
    containerName: CONTAINER,
    image: ecs.ContainerImage.fromEcrRepository(repository, config.image.tag),
    cpu: capacity.cpuUnits,
    memoryLimitMiB: capacity.memoryMiB,
    gpuCount: capacity.gpus,
    portMappings: [{ containerPort: PORT, protocol: ecs.Protocol.TCP }],
    environment: environment(config, Stack.of(scope).region),
    secrets: config.adminTokenSecret
      ? {
        NEXUS_ADMIN_TOKEN: ecs.Secret.fromSecretsManager(
          secretsmanager.Secret.fromSecretNameV2(scope, "AdminToken", config.adminTokenSecret)),
      }
      : undefined,
    // Liveness: 200 as soon as the process listens, so no start period has to cover the load of the models.
    healthCheck: {
      command: ["CMD-SHELL", `curl -f http://localhost:${PORT}/health || exit 1`],
      interval: Duration.seconds(30),
      timeout: Duration.seconds(5),
      retries: 3,
      startPeriod: Duration.seconds(60),
    },
    stopTimeout: Duration.seconds(times.stopTimeoutS),
    // Two for each connection of a request that streams, and room for downloads.
    ulimits: [{ name: ecs.UlimitName.NOFILE, softLimit: 65536, hardLimit: 65536 }],
    logging: ecs.LogDrivers.awsLogs({
      logGroup,
      streamPrefix: "nexus",
      // Logs that can not be delivered are dropped; the service does not wait for them.
      mode: ecs.AwsLogDriverMode.NON_BLOCKING,
    }),
  });
  container.addMountPoints({ sourceVolume: "cache", containerPath: CACHE_FOLDER, readOnly: false });
  return task;
}
