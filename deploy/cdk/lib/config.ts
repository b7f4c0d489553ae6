// What can be configured, its defaults, and the relations between values that have to hold. `resolve` checks them, so that
// a deployment that would cut requests off does not even synthesize.

/** What config.ts says. Whatever is optional has its default beside it. */
export interface Config {
  /** Name of the stack, and where names have to be unique in an account, their beginning. Default: Nexus. */
  readonly name?: string;

  /** Image in this account's ECR. A tag that is never moved makes rollbacks certain. */
  readonly image: { readonly repository: string; readonly tag: string };

  readonly models: {
    /** Name of a bucket that exists. */
    readonly bucket: string;
    /** Where model folders begin in the bucket. Default: at its root. */
    readonly prefix?: string;
    /** RETRIEVER_MODEL_PATH, under the prefix. */
    readonly retrieverPath: string;
    /** RERANKER_MODEL_PATH, under the prefix. */
    readonly rerankerPath: string;
    /** Key that the bucket is encrypted with, where it is not S3's own. */
    readonly kmsKeyArn?: string;
  };

  /** Table of embeddings. `create: false` for one that exists, made by `nexus cache create-table` or another stack. */
  readonly cacheTable: {
    readonly name: string;
    readonly create: boolean;
    /** Most write units a second, a ceiling on what a day can cost. Default: none. */
    readonly writeUnitsMax?: number;
  };

  /** Resident target sets that replicas share. Default: each replica has its own. */
  readonly targets?: {
    /** Name of a bucket that exists. */
    readonly bucket: string;
    /** Where the sets are in it. Tasks may delete below it. */
    readonly prefix: string;
    /** Key that the bucket is encrypted with, where it is not S3's own. */
    readonly kmsKeyArn?: string;
  };

  /** Name of a Secrets Manager secret with the token of POST /admin/reload. Default: there is no such endpoint. */
  readonly adminTokenSecret?: string;

  /** `aws ecs execute-command`, which SIGHUP needs. Default: off; it lets people into the container. */
  readonly executeCommand?: boolean;

  /** An existing VPC. Default: a new one, with endpoints for S3 and DynamoDB and one NAT gateway. */
  readonly vpc?: {
    readonly id: string;
    readonly availabilityZones: readonly string[];
    readonly privateSubnetIds: readonly string[];
    readonly publicSubnetIds?: readonly string[];
  };

  /** Zones of the new VPC: not every zone has every GPU instance. Default: the region's first two. */
  readonly availabilityZones?: readonly string[];

  readonly loadBalancer?: {
    /** Reachable from the internet. Default: false. */
    readonly public?: boolean;
    /** HTTPS with this certificate; without one, HTTP, which only an internal load balancer may speak. */
    readonly certificateArn?: string;
    /** Who may connect. Default: 10.0.0.0/8. */
    readonly allowedCidrs?: readonly string[];
  };

  readonly capacity?: {
    /** Default: g5.12xlarge, four A10G. The code for them has not run on a GPU yet: docs/gpus.md. */
    readonly instanceType?: string;
    /** GPUs of one task, all of an instance's. Default: 4. */
    readonly gpus?: number;
    /** Processor shares of one task, 1024 a core. Default: 47104, which leaves two of 48 cores to the host. */
    readonly cpuUnits?: number;
    /** Memory of one task. Default: 163840, of the instance's 196608. */
    readonly memoryMiB?: number;
    /** Disk of an instance: the image, the models twice (a revision beside the other), the cache. Default: 200. */
    readonly diskGiB?: number;
    /** Fewest tasks. Default: 1. */
    readonly tasksMin?: number;
    /** Most tasks. A rollout needs up to as many instances again while it lasts. Default: 4. */
    readonly tasksMax?: number;
  };

  readonly times?: {
    /** NEXUS_REQUEST_TIMEOUT_MS, in seconds. Default: 55. */
    readonly requestTimeoutS?: number;
    /** Silence after which the load balancer gives a connection up. Default: 60. */
    readonly idleTimeoutS?: number;
    /** How long a target that leaves may still answer. Default: 60. */
    readonly deregistrationDelayS?: number;
    /** NEXUS_SHUTDOWN_TIMEOUT_MS, in seconds. Default: 100. */
    readonly shutdownTimeoutS?: number;
    /** Time between SIGTERM and SIGKILL. Default: 120, the most that ECS allows. */
    readonly stopTimeoutS?: number;
    /** Time in which a new task is not judged by /ready: the download of the models and their load. Default: 600. */
    readonly loadTimeS?: number;
  };

  readonly scaling?: {
    /** p95 of the wait in the queue from which a task is added. Default: 500. */
    readonly queueWaitHighMs?: number;
    /** p95 of the wait in the queue below which a task is taken away, after half an hour. Default: 50. */
    readonly queueWaitLowMs?: number;
  };

  readonly alarms?: {
    /** Who gets a mail. Default: nobody; subscribe to the topic that the stack prints. */
    readonly emails?: readonly string[];
    /** Default: 5000. */
    readonly latencyP95Ms?: number;
    /** Share of responses with a 5xx status. Default: 2. */
    readonly errorsPercent?: number;
    /** Failed reads and writes of the table in five minutes, of all tasks. A task that may not ask it has 10 or more. Default: 5. */
    readonly cacheFailures?: number;
    /** Default: 5000. */
    readonly queueWaitMs?: number;
  };

  /** Default: 30, which has to be one of the numbers of days that CloudWatch Logs knows. */
  readonly logRetentionDays?: number;

  /** LOG_LEVEL. Default: INFO. Above INFO there are no "stats" lines: nothing scales, and alarms on them are blind. */
  readonly logLevel?: string;
}

/** A configuration with everything in it. */
export type Resolved = Config & {
  readonly name: string;
  readonly executeCommand: boolean;
  readonly loadBalancer: Required<Pick<NonNullable<Config["loadBalancer"]>, "public" | "allowedCidrs">> & NonNullable<Config["loadBalancer"]>;
  readonly capacity: Required<NonNullable<Config["capacity"]>>;
  readonly times: Required<NonNullable<Config["times"]>>;
  readonly scaling: Required<NonNullable<Config["scaling"]>>;
  readonly alarms: Required<NonNullable<Config["alarms"]>>;
  readonly logRetentionDays: number;
  readonly logLevel: string;
};

/** How long the server keeps an idle connection: HEADER_TIMEOUT in crates/service/src/http/server.rs. A test compares. */
export const KEEP_ALIVE_S = 75;

/** The part of the time for shutdown that the service leaves for what comes after the requests: AFTER_REQUESTS there. */
const AFTER_REQUESTS = 0.1;

/** What a process needs between the end of its own time for shutdown and SIGKILL. */
const EXIT_S = 10;

/** The configuration with its defaults. Throws with one line for each relation that does not hold. */
export function resolve(config: Config): Resolved {
  const all: Resolved = {
    ...config,
    name: config.name ?? "Nexus",
    executeCommand: config.executeCommand ?? false,
    loadBalancer: { public: false, allowedCidrs: ["10.0.0.0/8"], ...config.loadBalancer },
    capacity: {
      instanceType: "g5.12xlarge", gpus: 4, cpuUnits: 47104, memoryMiB: 163840, diskGiB: 200, tasksMin: 1, tasksMax: 4,
      ...config.capacity,
    },
    times: {
      requestTimeoutS: 55, idleTimeoutS: 60, deregistrationDelayS: 60, shutdownTimeoutS: 100, stopTimeoutS: 120, loadTimeS: 600,
      ...config.times,
    },
    scaling: { queueWaitHighMs: 500, queueWaitLowMs: 50, ...config.scaling },
    alarms: { emails: [], latencyP95Ms: 5000, errorsPercent: 2, cacheFailures: 5, queueWaitMs: 5000, ...config.alarms },
    logRetentionDays: config.logRetentionDays ?? 30,
    logLevel: config.logLevel ?? "INFO",
  };
  const wrong = problems(all);
  if (wrong.length > 0) {
    throw new Error(`config.ts:\n${wrong.map((line) => `  ${line}`).join("\n")}`);
  }
  return all;
}

function problems({ times, capacity, scaling, loadBalancer, models, targets, vpc, logLevel }: Resolved): string[] {
  const rules: [boolean, string][] = [
    [times.requestTimeoutS < times.idleTimeoutS,
      "times.requestTimeoutS: expected less than idleTimeoutS: a request that is computed is silence to the load balancer, which would answer 504 first, with no reason"],
    [times.idleTimeoutS < KEEP_ALIVE_S,
      `times.idleTimeoutS: expected less than the ${KEEP_ALIVE_S} s that the server keeps a connection: otherwise a request meets one that is being closed, a 502`],
    [times.deregistrationDelayS >= times.requestTimeoutS,
      "times.deregistrationDelayS: expected at least requestTimeoutS: the load balancer would cut off what a leaving task still computes"],
    [times.shutdownTimeoutS * (1 - AFTER_REQUESTS) >= times.requestTimeoutS,
      "times.shutdownTimeoutS: expected requestTimeoutS and a ninth more: a tenth is for writing the cache"],
    [times.stopTimeoutS >= times.shutdownTimeoutS + EXIT_S,
      `times.stopTimeoutS: expected at least shutdownTimeoutS + ${EXIT_S}: SIGKILL would come first`],
    [times.stopTimeoutS <= 120, "times.stopTimeoutS: expected at most 120: ECS allows no more"],
    [capacity.tasksMin >= 1 && capacity.tasksMin <= capacity.tasksMax, "capacity.tasksMin: expected 1 to tasksMax"],
    [scaling.queueWaitLowMs < scaling.queueWaitHighMs, "scaling.queueWaitLowMs: expected less than queueWaitHighMs"],
    [!loadBalancer.public || loadBalancer.certificateArn !== undefined,
      "loadBalancer.public: expected a certificateArn: controls would cross the internet unencrypted"],
    [!loadBalancer.public || vpc === undefined || (vpc.publicSubnetIds ?? []).length >= 2,
      "vpc.publicSubnetIds: expected two or more for a public load balancer"],
    [vpc === undefined || (vpc.availabilityZones.length >= 2 && vpc.privateSubnetIds.length === vpc.availabilityZones.length),
      "vpc: expected two or more availabilityZones and a private subnet for each: a load balancer needs two"],
    [["DEBUG", "INFO", "TRACE"].includes(logLevel), "logLevel: expected INFO or below: scaling and alarms read the \"stats\" lines"],
  ];
  for (const [name, path] of [["retrieverPath", models.retrieverPath], ["rerankerPath", models.rerankerPath]] as const) {
    rules.push([path !== "" && !/^\/|\*|\?|^(s3|hf|file):/.test(path), `models.${name}: expected a folder under the bucket, as models/name/`]);
  }
  for (const [name, prefix] of [["models.prefix", models.prefix ?? ""], ["targets.prefix", targets?.prefix ?? "sets"]] as const) {
    rules.push([!/^\/|\/$|\*|\?/.test(prefix), `${name}: expected no slash at either end and no wildcard`]);
  }
  rules.push([targets === undefined || targets.prefix !== "", "targets.prefix: expected a prefix: tasks may delete below it"]);
  return rules.filter(([holds]) => !holds).map(([, line]) => line);
}
