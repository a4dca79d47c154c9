// A plugin of opencode, /etc/opencode/plugin/permissions.js of the image: tools that the host's opencode.json denies by
// their names stay denied. A workspace's settings could allow them again, by a pattern or in the `permission` of an agent of their own,
// for of all rules that match the last one counts; but no call of a tool gets around this.
import { readFileSync } from "node:fs"

export const Permissions = async () => {
  const { permission = {} } = JSON.parse(readFileSync("/etc/opencode/opencode.json", "utf8"))
  return {
    "tool.execute.before": async ({ tool }) => {
      if (permission[tool] === "deny")
        throw new Error(`${tool} is denied by /etc/opencode/opencode.json, whatever the workspace says of it`)
    },
  }
}
