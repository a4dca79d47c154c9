# services.agentmachine: agentmachine on NixOS. doc/nixos.md tells how to use it. The fields of a card are options of the
# same names, made from the card's schema, so that a new field of the card needs nothing here.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkDefault mkOption types;
  cfg = config.services.agentmachine;

  # From the card's schema: the options of one agent, and a card from their values.

  schema = lib.importJSON ../src/card/card.schema.json;
  # The name is the attribute's; autoStart, unlike autostart, also starts the machine with a switch that declares it.
  properties = removeAttrs schema.properties [
    "$schema"
    "agent_id"
    "autostart"
  ];
  isKeyFile = property: property.format or "" == "key-file";
  keyFields = builtins.attrNames (lib.filterAttrs (_: isKeyFile) properties);

  # api_key_file → apiKeyFile
  camelCase =
    name:
    let
      words = lib.splitString "_" name;
      capital = word: lib.toUpper (builtins.substring 0 1 word) + builtins.substring 1 (-1) word;
    in
    builtins.head words + lib.concatMapStrings capital (builtins.tail words);

  # What a type can't say, such as how a host is written, the program itself checks while the system is built.
  typeOf =
    property:
    if property ? enum then
      types.enum property.enum
    else if property.type == "string" then
      types.str
    else if property.type == "boolean" then
      types.bool
    else if property.type == "integer" then
      types.ints.between property.minimum property.maximum
    else if property.type == "array" then
      types.listOf types.str
    else if property ? properties then
      types.submodule { options = optionsFrom property.properties; }
    else
      types.attrsOf types.str;

  optionsFrom = lib.mapAttrs' (
    name: property:
    lib.nameValuePair (camelCase name) (mkOption {
      type = types.nullOr (typeOf property);
      default = null;
      example = exampleOf property;
      description =
        "The card's `${name}`: ${property.description}."
        + lib.optionalString (property ? default) " If null: `${builtins.toJSON property.default}`."
        + lib.optionalString (isKeyFile property) " A string and not a path, which Nix would copy to where all can read it."
        + lib.optionalString (name == "environment") " All users of the host can read it, in the Nix store: no secrets.";
    })
  );

  exampleOf =
    property:
    if property ? properties then
      lib.mapAttrs' (name: inner: lib.nameValuePair (camelCase name) (exampleOf inner)) property.properties
    else
      builtins.head property.examples;

  fieldsFrom =
    properties: values:
    lib.filterAttrs (_: value: value != null && value != { }) (
      lib.mapAttrs (
        name: property:
        let
          value = values.${camelCase name};
        in
        if property ? properties && value != null then fieldsFrom property.properties value else value
      ) properties
    );

  # What an agent's card says, in the card's own spelling. A card that is built can't be read before it is.
  cardOf =
    agent:
    if agent.card == null then
      fieldsFrom properties agent
    else if !builtins.isPath agent.card then
      { }
    else if isToml agent.card then
      lib.importTOML agent.card
    else
      lib.importJSON agent.card;
  isToml = file: lib.hasSuffix ".toml" (toString file);

  agentModule =
    { name, config, ... }:
    {
      options = optionsFrom properties // {
        card = mkOption {
          type = types.nullOr types.path;
          default = null;
          example = lib.literalExpression "./ada.json";
          description = ''
            A card, JSON or TOML, in place of the options here that are named after a card's fields: a path, or something
            that is built. It is copied to the Nix store, where all users can read it: a card names the file of a key and
            never holds one.
          '';
        };
        engine = mkOption {
          type = types.enum [
            "machine"
            "k3s"
          ];
          default = "machine";
          example = "k3s";
          description = ''
            Where the agent runs: in a machine of this host, or in the cluster whose server this host is, as
            `agentmachine export kubernetes` writes it. doc/kubernetes.md tells what a cluster keeps of a machine's promises,
            and how images and keys get there.
          '';
        };
        autoStart = mkOption {
          type = types.bool;
          default = false;
          example = true;
          description = ''
            Whether the machine is started with the host, and by a switch to a configuration that changes a declared agent
            or agentmachine itself. Another switch leaves a machine that a person stopped as it is.
          '';
        };
        restartIfChanged = mkOption {
          type = types.bool;
          default = true;
          example = false;
          description = ''
            Whether a switch to a configuration with another card restarts the machine, if it runs. If not, the new
            card's hosts count at once, the rest of it from the machine's next start.
          '';
        };
        user = mkOption {
          type = types.str;
          default = cfg.user;
          defaultText = lib.literalExpression "config.services.agentmachine.user";
          example = "alice";
          description = ''
            To whom the workspace belongs, and what the agent writes there. Not root. Of a {option}`card` that is built the
            workspace isn't known, so there it can't be set.
          '';
        };
      };
      config = lib.mkIf (config.card == null) {
        workspace = mkDefault "${cfg.agentsDir}/${name}";
        proxy = lib.mkIf (!ownProxy) (mkDefault cfg.proxy);
      };
    };

  # Addresses.

  addressParts = lib.splitString "/" cfg.network.address;
  gateway = builtins.head addressParts;
  # Of these the first means agentmachine's own with every port.
  ownProxy = builtins.elem cfg.proxy [
    "http://127.0.0.1:3128"
    "http://127.0.0.1:${toString cfg.network.proxyPort}"
    "http://${gateway}:${toString cfg.network.proxyPort}"
  ];
  toNumber = dotted: lib.foldl' (sum: octet: sum * 256 + lib.toInt octet) 0 (lib.splitString "." dotted);
  power = exponent: if exponent == 0 then 1 else 2 * power (exponent - 1);
  # Whether two networks, "10.42.0.0/16", have an address in common.
  overlap =
    one: other:
    let
      parts = map (lib.splitString "/") [
        one
        other
      ];
      length = lib.foldl' lib.min 32 (map (part: lib.toInt (lib.last part)) parts);
      network = part: toNumber (builtins.head part) / power (32 - length);
    in
    network (builtins.head parts) == network (lib.last parts);
  # K3s' networks for pods and services: what its flags say, or its defaults.
  k3sNetwork =
    flag: default:
    let
      given = builtins.match ".*${flag}[= ]([0-9./]+).*" (toString config.services.k3s.extraFlags);
    in
    if given == null then default else builtins.head given;
  k3sNetworks = [
    (k3sNetwork "--cluster-cidr" "10.42.0.0/16")
    (k3sNetwork "--service-cidr" "10.43.0.0/16")
  ];

  # Files.

  declaredDirectory = "/etc/agentmachine/declared";
  cardName = id: agent: if agent.card != null && isToml agent.card then "${id}.toml" else "${id}.json";
  cardFile =
    id: agent:
    pkgs.runCommand "agentmachine-card-${id}"
      {
        card =
          if agent.card != null then
            agent.card
          else
            pkgs.writeText "${id}.json" (builtins.toJSON ({ agent_id = id; } // cardOf agent) + "\n");
      }
      ''
        cp "$card" ${cardName id agent}
        ${cfg.package}/bin/agentmachine check ${cardName id agent} >&2
        mv ${cardName id agent} $out
      '';
  cardFiles = lib.mapAttrs cardFile cfg.agents;
  byEngine = engine: lib.filterAttrs (_: agent: agent.engine == engine) cfg.agents;
  machines = byEngine "machine";
  pods = byEngine "k3s";
  where = test: builtins.attrNames (lib.filterAttrs (_: test) machines);
  manifest = pkgs.runCommand "agentmachine-k3s.yaml" { } ''
    ${lib.concatStrings (lib.mapAttrsToList (id: agent: "cp ${cardFiles.${id}} ${cardName id agent}\n") pods)}
    ${cfg.package}/bin/agentmachine export kubernetes --namespace ${cfg.k3s.namespace} \
      --replicas ${toString cfg.k3s.replicas} --image ${cfg.k3s.image} --proxy-image ${cfg.k3s.proxyImage} \
      ${lib.concatStringsSep " " (lib.mapAttrsToList cardName pods)} >$out
  '';

  format = pkgs.formats.toml { };
  settingsFile = format.generate "agentmachine.conf" cfg.settings;
  checkedSettings = pkgs.runCommand "agentmachine.conf" { settings = settingsFile; } ''
    ${cfg.package}/bin/agentmachine check --settings "$settings" >&2
    cp "$settings" $out
  '';

  # An image for each choice of packages that a declared agent makes, besides the one of all others.
  choices = lib.unique (
    builtins.filter (chosen: chosen != [ ]) (
      lib.mapAttrsToList (_: agent: builtins.sort builtins.lessThan (lib.unique (cardOf agent).packages or [ ])) machines
    )
  );
  imageWith =
    chosen:
    (import ./image.nix {
      inherit pkgs chosen;
      inherit (cfg.image) npmRegistry;
      extraPackages = cfg.image.packages;
    }).tree;
  # Quotes copy what is a file of the configuration to the Nix store.
  images = map (image: "${image}") ([ cfg.image.rootfs ] ++ map imageWith choices);

  inStore = path: lib.hasPrefix builtins.storeDir path;

  # In tmpfiles.settings, which quotes a path and escapes nothing.
  tmpfilesPath =
    lib.replaceStrings
      [
        "%"
        "\\"
        "'"
      ]
      [
        "%%"
        "\\x5c"
        "\\x27"
      ];
  directory = mode: user: group: { d = { inherit mode user group; }; };
in
{
  options.services.agentmachine = {
    enable = lib.mkEnableOption "agentmachine, machines for AI coding agents on systemd-nspawn";

    package = mkOption {
      type = types.package;
      default = pkgs.agentmachine or (pkgs.callPackage ./package.nix { });
      defaultText = lib.literalExpression "pkgs.agentmachine";
      example = lib.literalExpression "inputs.agentmachine.packages.x86_64-linux.agentmachine";
      description = "The agentmachine to use.";
    };

    proxyPackage = lib.mkPackageOption pkgs "squid" {
      extraDescription = "It is every machine's only way out: 6 or newer, built with OpenSSL.";
    };

    agentsDir = mkOption {
      type = types.str;
      default = "/mnt/agents";
      example = "/srv/agents";
      description = "The directory of the workspaces of agents that name no other.";
    };

    cardsDir = mkOption {
      type = types.str;
      default = "/etc/opencode-agents";
      example = "/srv/cards";
      description = ''
        Where `agentmachine start ID` looks for ID.json or ID.toml: cards that need no rebuild. It is a plain directory,
        root's, and what is in it is never touched.
      '';
    };

    proxy = mkOption {
      type = types.str;
      default = "http://127.0.0.1:${toString cfg.network.proxyPort}";
      defaultText = lib.literalExpression ''"http://127.0.0.1:''${toString config.services.agentmachine.network.proxyPort}"'';
      example = "http://10.100.1.1:3128";
      description = ''
        By which proxy declared agents reach their hosts. The default is agentmachine's own; another is asked through it,
        and cards may then name it as well. The broker that adds keys can't reach a provider through it: an agent with
        another proxy has to have `api_key_delivery = "credential"` in its card.
      '';
    };

    user = mkOption {
      type = types.str;
      default = "opencode-agent";
      example = "alice";
      description = "To whom workspaces belong that nobody in particular asked for. The default user is made if absent.";
    };

    network = {
      bridge = mkOption {
        type = types.strMatching "[A-Za-z0-9._-]{1,15}";
        default = "agents0";
        example = "robots0";
        description = "The bridge that machines are connected to.";
      };
      address = mkOption {
        type = types.strMatching "[0-9]{1,3}(\\.[0-9]{1,3}){3}/[0-9]{1,2}";
        default = "10.213.0.1/16";
        example = "10.99.0.1/24";
        description = "The host's address on the bridge and the length of its network, 8 to 29.";
      };
      proxyPort = mkOption {
        type = types.port;
        default = 3128;
        example = 8888;
        description = "Where machines reach the filtering proxy, on that address.";
      };
    };

    broker.port = mkOption {
      type = types.port;
      default = 8081;
      example = 8889;
      description = "Where machines reach their model provider, on the bridge's address; the key is added there.";
    };

    image = {
      packages = mkOption {
        type = types.listOf types.package;
        default = [ ];
        example = lib.literalExpression "[ pkgs.jq ]";
        description = ''
          What every machine's image holds besides dash, coreutils, grep, sed, git, curl, ripgrep and opencode. Packages that
          are or bring along bash, Perl, Python, Ruby or Node.js are refused when the image is built: those go to the agents
          that need them, by {option}`services.agentmachine.agents.<name>.packages`.
        '';
      };
      npmRegistry = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "https://npm.corp.example";
        description = ''
          The npm registry from which opencode is taken, in the very version that agentmachine is tested with, by its hash.
          If null it is nixpkgs' opencode, in whatever version that is.
        '';
      };
      rootfs = mkOption {
        type = types.path;
        default = imageWith [ ];
        defaultText = lib.literalExpression "the image from nix/image.nix with image.packages";
        example = lib.literalExpression "./agentmachine-rootfs.tar";
        description = ''
          The root file system that new machines get, as `agentmachine image import` takes it: a directory, used where it is,
          or a tarball; something that is built, or a path, which is copied to the Nix store.
        '';
      };
    };

    metrics = {
      enable = lib.mkEnableOption "metrics of machines, requests and guards for Prometheus' node_exporter, renewed every 30 s";
      directory = mkOption {
        type = types.str;
        default = "/var/lib/prometheus/node-exporter";
        example = "/var/lib/node_exporter";
        description = "The directory that node_exporter reads: its {option}`--collector.textfile.directory`.";
      };
      listen = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "127.0.0.1:9814";
        description = "Address on loopback at which a Prometheus of this host gets the metrics itself, at /metrics.";
      };
    };

    k3s = {
      replicas = mkOption {
        type = types.ints.between 1 1000;
        default = 1;
        example = 2;
        description = "How many of each agent there are in the cluster. They share its workspace, and may undo each other's work.";
      };
      namespace = mkOption {
        type = types.strMatching "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";
        default = "opencode-agent";
        example = "agents";
        description = "The namespace of all of it.";
      };
      image = mkOption {
        type = types.strMatching "[a-zA-Z0-9./:@_-]+";
        default = "localhost/agentmachine:latest";
        example = "registry.corp.example/agentmachine:0.1.0";
        description = "The agent's image, which `agentmachine image export --oci` writes.";
      };
      proxyImage = mkOption {
        type = types.strMatching "[a-zA-Z0-9./:@_-]+";
        default = "localhost/agentmachine-squid:6.13";
        example = "registry.corp.example/squid:6.13";
        description = "The proxy's image, made from images/squid/Containerfile.";
      };
    };

    settings = mkOption {
      inherit (format) type;
      default = { };
      example = lib.literalExpression ''{ private_hosts = [ "git.corp.example:443" ]; }'';
      description = ''
        {file}`/etc/agentmachine/agentmachine.conf`; agentmachine(1) lists what it may hold. The program checks it while the
        system is built.
      '';
    };

    agents = mkOption {
      type = types.attrsOf (types.submodule agentModule);
      default = { };
      example = lib.literalExpression ''
        {
          ada = {
            apiKeyFile = "/run/secrets/ada-key";
            allowedHosts = [ "docs.example.org" ];
            resourceLimits.memoryMb = 2048;
            autoStart = true;
          };
        }
      '';
      description = ''
        Agents that are part of the configuration. One that is no longer here is stopped and its machine removed; its
        workspace stays. Others are made with `agentmachine create` and `agentmachine start`, without a rebuild, and live
        beside these.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions =
      lib.concatLists (
        lib.mapAttrsToList (
          id: agent:
          [
            {
              assertion = builtins.match "[a-z0-9]([a-z0-9-]{0,55}[a-z0-9])?" id != null;
              message = ''services.agentmachine.agents: "${id}" is no agent id: lower case letters, digits and hyphens, at most 57'';
            }
            {
              assertion = agent.user != "root";
              message = "services.agentmachine.agents.${id}.user: root can't own a workspace; name the person that the agent works for";
            }
            {
              assertion = config.users.users ? ${agent.user};
              message = "services.agentmachine.agents.${id}.user: there is no user ${agent.user}; declare users.users.${agent.user}";
            }
            {
              assertion = agent.card == null || fieldsFrom properties agent == { };
              message = "services.agentmachine.agents.${id}: has a card and fields of a card (${
                lib.concatStringsSep ", " (map camelCase (builtins.attrNames (fieldsFrom properties agent)))
              }); write them into the card";
            }
            {
              assertion = agent.card == null || builtins.isPath agent.card || inStore (toString agent.card);
              message = "services.agentmachine.agents.${id}.card: ${toString agent.card} is not there when the system is built; give a path without quotes, such as ./${id}.json";
            }
            {
              assertion = agent.card == null || builtins.isPath agent.card || agent.user == cfg.user;
              message = "services.agentmachine.agents.${id}.user: the card is built, so its workspace isn't known yet; give that to ${agent.user} yourself";
            }
            {
              assertion = (cardOf agent).agent_id or id == id;
              message = ''services.agentmachine.agents.${id}: the card's agent_id is "${(cardOf agent).agent_id or ""}"; call both the same'';
            }
            {
              assertion = !(cfg.agents ? "agent-${id}");
              message = ''services.agentmachine.agents: "${id}" and "agent-${id}" would be one machine; rename one'';
            }
          ]
          ++ map (file: {
            assertion = !inStore file;
            message = "services.agentmachine.agents.${id}: the key file ${file} is in the Nix store, which all users can read; name a file outside it, such as one in /run/secrets";
          }) (lib.attrVals (builtins.filter (name: cardOf agent ? ${name}) keyFields) (cardOf agent))
        ) cfg.agents
      )
      # Without it NixOS writes a unit of that name, which takes the place of systemd's template and agentmachine's drop-ins.
      ++ lib.mapAttrsToList (name: unit: {
        assertion = !lib.hasPrefix "systemd-nspawn@agent-" name || !unit.enable || unit.overrideStrategy == "asDropin";
        message = ''systemd.services."${name}": would replace the machine's whole unit; add overrideStrategy = "asDropin"'';
      }) config.systemd.services
      ++ [
        {
          assertion = pods == { } || config.services.k3s.enable;
          message = "services.agentmachine.agents: ${lib.concatStringsSep ", " (builtins.attrNames pods)} should run in K3s, and this host has none; set services.k3s.enable";
        }
        {
          assertion = pods == { } || !config.services.k3s.enable || config.services.k3s.role == "server";
          message = "services.agentmachine.agents: ${lib.concatStringsSep ", " (builtins.attrNames pods)} should run in K3s, and this host is no server of it, which alone takes manifests; declare them where services.k3s.role is \"server\"";
        }
        {
          assertion = cfg.network.proxyPort != cfg.broker.port;
          message = "services.agentmachine: network.proxyPort and broker.port are both ${toString cfg.broker.port}";
        }
        {
          assertion = !config.services.k3s.enable || !lib.any (overlap cfg.network.address) k3sNetworks;
          message = "services.agentmachine.network.address: ${cfg.network.address} overlaps the networks of K3s (${lib.concatStringsSep ", " k3sNetworks}); choose another";
        }
      ];

    services.agentmachine.settings = {
      bridge = mkDefault cfg.network.bridge;
      address = mkDefault cfg.network.address;
      proxy_port = mkDefault cfg.network.proxyPort;
      broker_port = mkDefault cfg.broker.port;
      cards_directory = mkDefault cfg.cardsDir;
      workspace_user = mkDefault cfg.user;
      packages = lib.mkIf (choices != [ ]) (lib.unique (lib.concatLists choices));
      parent_proxies = lib.mkIf (!ownProxy) [ cfg.proxy ];
      # What is rendered for machines outlives the store path of an older version.
      program = mkDefault "/run/current-system/sw/bin/agentmachine";
      init = mkDefault "/etc/agentmachine/agentmachine-init";
    };

    environment.systemPackages = [ cfg.package ];
    environment.etc = {
      "agentmachine/agentmachine.conf".source = checkedSettings;
      "agentmachine/agentmachine-init".source = "${cfg.package}/libexec/agentmachine/agentmachine-init";
    }
    // lib.mapAttrs' (
      id: agent: lib.nameValuePair "agentmachine/declared/${cardName id agent}" { source = cardFiles.${id}; }
    ) machines;

    # The directory that K3s applies, /var/lib/rancher/k3s/server/manifests, is that option's business.
    services.k3s.manifests = lib.mkIf (pods != { }) { agentmachine.source = manifest; };

    # As units/agentmachine.sysusers says it; NixOS makes users its own way.
    users.users = {
      agentmachine-proxy = {
        isSystemUser = true;
        group = "agentmachine-proxy";
        description = "Filtering proxy of AI coding agents";
      };
    }
    // lib.optionalAttrs (cfg.user == "opencode-agent") {
      opencode-agent = {
        isSystemUser = true;
        group = "opencode-agent";
        home = cfg.agentsDir;
        description = "Workspaces of AI coding agents";
      };
    };
    users.groups = {
      agentmachine-proxy = { };
    }
    // lib.optionalAttrs (cfg.user == "opencode-agent") { opencode-agent = { }; };

    systemd.packages = [ cfg.package ];
    systemd.tmpfiles.packages = [ cfg.package ];
    systemd.tmpfiles.settings.agentmachine-nixos = lib.mapAttrs' (path: lib.nameValuePair (tmpfilesPath path)) (
      {
        ${cfg.agentsDir} = directory "0755" "root" "root";
      }
      # The default one is made by the package.
      // lib.optionalAttrs (cfg.cardsDir != "/etc/opencode-agents") { ${cfg.cardsDir} = directory "0750" "root" "root"; }
      // lib.optionalAttrs cfg.metrics.enable { ${cfg.metrics.directory} = directory "0755" "root" "root"; }
      // lib.mapAttrs' (
        _: agent:
        lib.nameValuePair (cardOf agent).workspace (
          # In a pod, the agent has the image's number.
          if agent.engine == "k3s" then
            directory "0750" "65532" "65532"
          else
            directory "0750" agent.user config.users.users.${agent.user}.group
        )
      ) (lib.filterAttrs (_: agent: cardOf agent ? workspace) cfg.agents)
    );

    systemd.services = {
      # A restart would cut off the machines that run; a reload brings bridge and rules to the new state.
      agentmachine-network = {
        wantedBy = [ "multi-user.target" ];
        reloadIfChanged = true;
        restartTriggers = [ settingsFile ];
      };
      agentmachine-proxy = {
        wantedBy = [ "multi-user.target" ];
        restartTriggers = [ settingsFile ];
        serviceConfig.ExecStart = [
          ""
          "${cfg.proxyPackage}/bin/squid -N -n agentmachine -f /run/agentmachine/proxy/squid.conf"
        ];
      };
      agentmachine-render.wantedBy = [
        "machines.target"
        "multi-user.target"
      ];

      agentmachine-image = {
        description = "Image of AI coding agents' machines";
        documentation = [ "man:agentmachine(1)" ];
        wantedBy = [ "multi-user.target" ];
        after = [ "systemd-tmpfiles-setup.service" ];
        path = [
          cfg.package
          config.nix.package
        ];
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          StateDirectory = "agentmachine";
        };
        # Once for each image there ever is, not at each boot: the one imported last is what new machines get.
        script = ''
          last=$STATE_DIRECTORY/image-of-nixos
          [ "$(cat "$last" 2>/dev/null)" != "${toString images}" ] || exit 0
          for image in ${toString images}; do
            agentmachine image import $image
          done
          echo "${toString images}" >"$last"
        '';
      };

      agentmachine-declared = {
        description = "Declared AI coding agents";
        documentation = [ "man:agentmachine(1)" ];
        wantedBy = [ "multi-user.target" ];
        wants = [
          "agentmachine-network.service"
          "agentmachine-proxy.service"
        ];
        requires = [ "agentmachine-image.service" ];
        after = [
          "agentmachine-image.service"
          "agentmachine-network.service"
          "agentmachine-proxy.service"
          "agentmachine-render.service"
        ];
        restartTriggers = map (id: cardFiles.${id}) (builtins.attrNames machines);
        path = [
          cfg.package
          pkgs.diffutils
        ];
        environment = {
          START = lib.concatStringsSep " " (where (agent: agent.autoStart));
          RESTART = lib.concatStringsSep " " (where (agent: agent.restartIfChanged));
        };
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          StateDirectory = "agentmachine/declared";
          StateDirectoryMode = "0700";
          ExecStart = "${pkgs.runtimeShell} ${./declared-agents} ${declaredDirectory}";
        };
      };

      agentmachine-metrics = lib.mkIf cfg.metrics.enable {
        unitConfig.ConditionPathIsDirectory = [
          ""
          cfg.metrics.directory
        ];
        serviceConfig = {
          ExecStart = [
            ""
            "${cfg.package}/bin/agentmachine metrics --output ${cfg.metrics.directory}/agentmachine.prom"
          ];
          ReadWritePaths = [ cfg.metrics.directory ];
        };
      };

      # An update of systemd restarts no agent at work.
      "systemd-nspawn@" = {
        overrideStrategy = "asDropin";
        restartIfChanged = mkDefault false;
      };
    };

    systemd.sockets.agentmachine-metrics = lib.mkIf (cfg.metrics.listen != null) {
      wantedBy = [ "sockets.target" ];
      listenStreams = [
        ""
        cfg.metrics.listen
      ];
    };
    systemd.timers.agentmachine-metrics = lib.mkIf cfg.metrics.enable { wantedBy = [ "timers.target" ]; };

    # These two and no others: NixOS' firewall would drop what comes from machines. Their own rules are in nft.
    networking.firewall.interfaces.${cfg.network.bridge}.allowedTCPPorts = [
      cfg.network.proxyPort
      cfg.broker.port
    ];
    # Addresses on the bridge are agentmachine's business.
    networking.dhcpcd.denyInterfaces = [
      cfg.network.bridge
      "am-*"
    ];
    networking.networkmanager.unmanaged = [
      "interface-name:${cfg.network.bridge}"
      "interface-name:am-*"
    ];
  };
}
