// The service and its load balancer.

import { Duration } from "aws-cdk-lib";
import * as acm from "aws-cdk-lib/aws-certificatemanager";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import * as ecs from "aws-cdk-lib/aws-ecs";
import * as elb from "aws-cdk-lib/aws-elasticloadbalancingv2";
import type { Construct } from "constructs";
import type { Resolved } from "./config";
import { CONTAINER, PORT } from "./task";

export function service(scope: Construct, vpc: ec2.IVpc, cluster: ecs.Cluster, provider: ecs.AsgCapacityProvider, task: ecs.Ec2TaskDefinition, config: Resolved): ecs.Ec2Service {
  return new ecs.Ec2Service(scope, "Service", {
    cluster,
    taskDefinition: task,
    // No desiredCount: scaling keeps it at tasksMin or more, and a deployment does not set it back.
    capacityProviderStrategies: [{ capacityProvider: provider.capacityProviderName, weight: 1 }],
    vpcSubnets: { subnetType: ec2.SubnetType.PRIVATE_WITH_EGRESS },
    securityGroups: [new ec2.SecurityGroup(scope, "TasksGroup", { vpc, description: "Tasks of Nexus: the load balancer connects to them" })],
    // A task takes a whole instance. A rollout starts as many tasks as run, on as many new instances, and stops old ones as
    // new ones are ready. A percentage that starts one at a time does not exist for all counts: what is one more of four
    // is none of three.
    minHealthyPercent: 100,
    maxHealthyPercent: 200,
    circuitBreaker: { enable: true, rollback: true },
    healthCheckGracePeriod: Duration.seconds(config.times.loadTimeS),
    enableExecuteCommand: config.executeCommand,
    enableECSManagedTags: true,
    propagateTags: ecs.PropagatedTagSource.SERVICE,
  });
}

export function loadBalancer(scope: Construct, vpc: ec2.IVpc, service: ecs.Ec2Service, { loadBalancer, times }: Resolved): { balancer: elb.ApplicationLoadBalancer; targets: elb.ApplicationTargetGroup } {
  const balancer = new elb.ApplicationLoadBalancer(scope, "LoadBalancer", {
    vpc,
    internetFacing: loadBalancer.public,
    vpcSubnets: { subnetType: loadBalancer.public ? ec2.SubnetType.PUBLIC : ec2.SubnetType.PRIVATE_WITH_EGRESS },
    // More than the service lets a request take, less than it keeps an idle connection: see lib/config.ts.
    idleTimeout: Duration.seconds(times.idleTimeoutS),
    dropInvalidHeaderFields: true,
  });
  const listener = loadBalancer.certificateArn
    ? balancer.addListener("Https", {
      port: 443,
      open: false,
      certificates: [acm.Certificate.fromCertificateArn(scope, "Certificate", loadBalancer.certificateArn)],
      sslPolicy: elb.SslPolicy.RECOMMENDED_TLS,
    })
    : balancer.addListener("Http", { port: 80, protocol: elb.ApplicationProtocol.HTTP, open: false });
  for (const cidr of loadBalancer.allowedCidrs) {
    listener.connections.allowDefaultPortFrom(ec2.Peer.ipv4(cidr), "Clients");
  }
  const targets = listener.addTargets("Tasks", {
    port: PORT,
    protocol: elb.ApplicationProtocol.HTTP,
    targets: [service.loadBalancerTarget({ containerName: CONTAINER, containerPort: PORT })],
    // Not /health: that says that the process lives, and is 200 while models load.
    healthCheck: {
      path: "/ready",
      healthyHttpCodes: "200",
      interval: Duration.seconds(10),
      timeout: Duration.seconds(5),
      healthyThresholdCount: 2,
      unhealthyThresholdCount: 3,
    },
    deregistrationDelay: Duration.seconds(times.deregistrationDelayS),
    // Requests differ a thousandfold in what they cost.
    loadBalancingAlgorithmType: elb.TargetGroupLoadBalancingAlgorithmType.LEAST_OUTSTANDING_REQUESTS,
  });
  // It would reach one task of many, and it is nobody's business outside.
  listener.addAction("Admin", {
    priority: 1,
    conditions: [elb.ListenerCondition.pathPatterns(["/admin", "/admin/*"])],
    action: elb.ListenerAction.fixedResponse(404, { contentType: "application/json", messageBody: '{"detail":"Not Found"}' }),
  });
  return { balancer, targets };
}
