// The network and the GPU instances. Nothing here asks AWS anything while synthesizing: zones and the image of the
// instances are resolved at deployment.

import * as autoscaling from "aws-cdk-lib/aws-autoscaling";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import * as ecs from "aws-cdk-lib/aws-ecs";
import * as iam from "aws-cdk-lib/aws-iam";
import type { Construct } from "constructs";
import type { Resolved } from "./config";

/** The VPC that the configuration names, or a new one. */
export function network(scope: Construct, { vpc }: Resolved): ec2.IVpc {
  if (vpc) {
    return ec2.Vpc.fromVpcAttributes(scope, "Vpc", {
      vpcId: vpc.id,
      availabilityZones: [...vpc.availabilityZones],
      privateSubnetIds: [...vpc.privateSubnetIds],
      publicSubnetIds: vpc.publicSubnetIds && [...vpc.publicSubnetIds],
    });
  }
  return new ec2.Vpc(scope, "Vpc", {
    maxAzs: 2,
    natGateways: 1,
    restrictDefaultSecurityGroup: false,
    // Models and embeddings do not pass the NAT gateway, which charges by the byte.
    gatewayEndpoints: {
      S3: { service: ec2.GatewayVpcEndpointAwsService.S3 },
      DynamoDb: { service: ec2.GatewayVpcEndpointAwsService.DYNAMODB },
    },
  });
}

/** A cluster whose instances come and go with its tasks. */
export function cluster(scope: Construct, vpc: ec2.IVpc, { capacity }: Resolved): { cluster: ecs.Cluster; provider: ecs.AsgCapacityProvider } {
  const cluster = new ecs.Cluster(scope, "Cluster", {
    vpc,
    // Otherwise CDK lets tasks write any log group on "*", for what is typed in `aws ecs execute-command`.
    executeCommandConfiguration: { logging: ecs.ExecuteCommandLogging.NONE },
  });
  const role = instanceRole(scope, cluster);
  const template = new ec2.LaunchTemplate(scope, "Instances", {
    instanceType: new ec2.InstanceType(capacity.instanceType),
    machineImage: ecs.EcsOptimizedImage.amazonLinux2023(ecs.AmiHardwareType.GPU),
    userData: ec2.UserData.forLinux(),
    // CDK would add permissions on "*" that these instances do not need; see `instanceRole`.
    role: role.withoutPolicyUpdates(),
    securityGroup: new ec2.SecurityGroup(scope, "InstancesGroup", { vpc, description: "Instances of Nexus: nothing connects to them" }),
    requireImdsv2: true,
    // One hop: what runs in a container does not get at the instance's role.
    httpPutResponseHopLimit: 1,
    blockDevices: [{
      deviceName: "/dev/xvda",
      volume: ec2.BlockDeviceVolume.ebs(capacity.diskGiB, {
        volumeType: ec2.EbsDeviceVolumeType.GP3,
        encrypted: true,
        // 16 GB of weights are written once and read at every load: 16 s at this rate, and 2 minutes at gp3's 125 MiB/s.
        iops: 4000,
        throughput: 1000,
      }),
    }],
  });
  const group = new autoscaling.AutoScalingGroup(scope, "Group", {
    vpc,
    vpcSubnets: { subnetType: ec2.SubnetType.PRIVATE_WITH_EGRESS },
    launchTemplate: template,
    minCapacity: 0,
    // Twice the tasks: a rollout starts as many as run before it stops one, and what finds no instance only waits.
    maxCapacity: 2 * capacity.tasksMax,
  });
  group.addUserData("echo ECS_AWSVPC_BLOCK_IMDS=true >> /etc/ecs/ecs.config", "echo ECS_ENABLE_GPU_SUPPORT=true >> /etc/ecs/ecs.config");
  const provider = new ecs.AsgCapacityProvider(scope, "Capacity", {
    autoScalingGroup: group,
    enableManagedScaling: true,
    // Instances with tasks are neither taken away nor stopped before their tasks have drained.
    enableManagedTerminationProtection: true,
    enableManagedDraining: true,
    targetCapacityPercent: 100,
    instanceWarmupPeriod: 300,
  });
  cluster.addAsgCapacityProvider(provider);
  return { cluster, provider };
}

/** What the agent on the instances needs; images and logs are the execution role's. */
function instanceRole(scope: Construct, cluster: ecs.ICluster): iam.Role {
  const role = new iam.Role(scope, "InstanceRole", { assumedBy: new iam.ServicePrincipal("ec2.amazonaws.com") });
  role.addToPolicy(new iam.PolicyStatement({
    sid: "Agent",
    actions: [
      "ecs:RegisterContainerInstance", "ecs:DeregisterContainerInstance",
      "ecs:SubmitAttachmentStateChanges", "ecs:SubmitContainerStateChange", "ecs:SubmitTaskStateChange",
    ],
    resources: [cluster.clusterArn],
  }));
  role.addToPolicy(new iam.PolicyStatement({
    sid: "AgentOfCluster",
    actions: ["ecs:Poll", "ecs:StartTelemetrySession", "ecs:UpdateContainerInstancesState"],
    resources: ["*"],
    conditions: { ArnEquals: { "ecs:cluster": cluster.clusterArn } },
  }));
  role.addToPolicy(new iam.PolicyStatement({ sid: "AgentEndpoint", actions: ["ecs:DiscoverPollEndpoint"], resources: ["*"] }));
  return role;
}
