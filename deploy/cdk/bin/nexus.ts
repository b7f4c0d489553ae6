// The app: one stack, in whatever account and region the credentials are for.

import { App } from "aws-cdk-lib";
import { config } from "../config";
import { resolve } from "../lib/config";
import { NexusStack } from "../lib/stack";

new NexusStack(new App(), resolve(config));
