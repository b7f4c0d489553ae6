// What the task's role may do. The runbook has the same as a table; a test lists every wildcard of the whole template.

import { Aws, Stack } from "aws-cdk-lib";
import * as iam from "aws-cdk-lib/aws-iam";
import type { Resolved } from "./config";

/** Grants the models, the table and the target sets. */
export function grant(stack: Stack, role: iam.IRole, config: Resolved): void {
  const { models, targets, cacheTable } = config;
  const bucketArn = (name: string) => `arn:${Aws.PARTITION}:s3:::${name}`;
  const allow = (sid: string, actions: string[], resources: string[], conditions?: Record<string, Record<string, unknown>>) =>
    role.addToPrincipalPolicy(new iam.PolicyStatement({ sid, actions, resources, conditions }));

  const folders = [models.retrieverPath, models.rerankerPath].map(
    (path) => `${models.prefix ? `${models.prefix}/` : ""}${path.replace(/\/$/, "")}`);
  allow("ReadModels", ["s3:GetObject"], folders.map((folder) => `${bucketArn(models.bucket)}/${folder}/*`));
  // Without it, a missing file reads as 403. A GET of a missing file is judged by this permission with no prefix at all,
  // hence "IfExists": a listing that names a prefix has to name one of these.
  allow("ListModels", ["s3:ListBucket"], [bucketArn(models.bucket)],
    { StringLikeIfExists: { "s3:prefix": folders.flatMap((folder) => [folder, `${folder}/*`]) } });
  if (models.kmsKeyArn) {
    allow("DecryptModels", ["kms:Decrypt"], [models.kmsKeyArn]);
  }

  if (targets) {
    allow("TargetSets", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
      [`${bucketArn(targets.bucket)}/${targets.prefix}/*`]);
    allow("ListTargetSets", ["s3:ListBucket"], [bucketArn(targets.bucket)],
      { StringLikeIfExists: { "s3:prefix": [targets.prefix, `${targets.prefix}/*`] } });
    if (targets.kmsKeyArn) {
      // A data key for each object that is put; an upload in parts decrypts its own, too.
      allow("KeyOfTargetSets", ["kms:Decrypt", "kms:GenerateDataKey"], [targets.kmsKeyArn]);
    }
  }

  allow("EmbeddingCache", ["dynamodb:BatchGetItem", "dynamodb:BatchWriteItem"],
    [stack.formatArn({ service: "dynamodb", resource: "table", resourceName: cacheTable.name })]);
}
