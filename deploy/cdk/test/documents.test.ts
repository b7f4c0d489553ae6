// What the documents say and the configuration or another document says, too.

import assert from "node:assert/strict";
import { test } from "node:test";
import { config } from "../config";
import { file } from "./template";

const found = (name: string, pattern: RegExp): string[] => {
  const match = pattern.exec(file(name));
  assert.ok(match, `${name}: ${pattern}`);
  return match.slice(1);
};

test("what is pushed is what is run: one tag, which is never moved", () => {
  const tags = [
    config.image.tag,
    ...found("deploy/README.md", /docker tag \S+ \S+nexus-ecs-service:(\w+) && docker push \S+nexus-ecs-service:(\w+)/),
    ...found("deploy/ecs/task-definition.json", /nexus-ecs-service:(\w+)"/),
  ];
  assert.deepEqual(new Set(tags), new Set(["1"]));
});

test("what a million embeddings take: the same in both documents, and so are the dollars", () => {
  const runbook = "docs/runbook.md";
  const stored = found(runbook, /^\| stored \| ([\d.]+) GB \| ([\d.]+) GB \|$/m).map(Number);
  const kept = ["f32", "bf16"].flatMap((dtype) => found("docs/aws.md", new RegExp(`^\\| \`${dtype}\`.* \\| ([\\d.]+) GB \\|`, "m"))).map(Number);
  assert.deepEqual(stored, kept);
  const numbers = (pattern: RegExp) => found(runbook, pattern).map(Number);
  const written = numbers(/^\| written \(misses\) \| ([\d.]+) million .* \| ([\d.]+) million/m);
  const hits = numbers(/^\| read \(hits\) \| ([\d.]+) million .* \| ([\d.]+) million/m);
  const [missed] = numbers(/^\| read \(misses\) \| ([\d.]+) million/m) as [number];
  const [write, read, month] = numbers(/^At ([\d.]+) USD for a million write units, ([\d.]+) USD .* ([\d.]+) USD for a GB/m) as [number, number, number];
  const dollars = [
    ...written.map((units) => units * write + missed * read), ...hits.map((units) => units * read), ...stored.map((gb) => gb * month),
  ];
  const said = numbers(/new vectors are ([\d.]+) USD as f32 and ([\d.]+) USD as bf16, a million hits ([\d.]+) and ([\d.]+) USD, and\s+keeping a million for a month ([\d.]+) and ([\d.]+) USD/);
  said.forEach((amount, index) => assert.ok(Math.abs(amount - dollars[index]!) <= 0.005 + 1e-9, `${amount}, computed ${dollars[index]}`));
});

test("commands in a container go through a shell: slim images have no kill", () => {
  assert.match(file("docs/runbook.md"), /--command "sh -c 'kill -HUP 1'"/);
});

test("nobody is promised more of GPUs than was seen", () => {
  const said = /has\s+not\s+run\s+on\s+a\s+GPU\s+yet/;
  assert.match(file("README.md"), said, "it has: say so in the files below, with what was measured, and drop this");
  for (const name of ["Dockerfile", "deploy/README.md", "deploy/cdk/lib/config.ts", "docs/runbook.md", "docs/gpus.md"]) {
    assert.match(file(name).replace(/\n# /g, " "), said, name);
  }
});
