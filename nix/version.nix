# The version, as meson.build says it.
builtins.head (builtins.match ".*project\\('agentmachine'[^)]*version: '([^']+)'.*" (builtins.readFile ../meson.build))
