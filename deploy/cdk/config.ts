// What this deployment is. Everything that differs between deployments is here; what it means is in lib/config.ts.

import type { Config } from "./lib/config";

export const config: Config = {
  image: { repository: "nexus-ecs-service", tag: "1" },
  models: {
    bucket: "my-model-bucket",
    retrieverPath: "models/qwen-embedding-8b/",
    rerankerPath: "models/modernbert-reranker/",
  },
  cacheTable: { name: "nexus-embedding-cache", create: true },
};
