# A stand-in for the part of nixpkgs' lib that nix/ uses, so that the module is evaluated where nixpkgs can't be had. It
# merges and checks as lib.evalModules does for the types that are used here, and knows nothing else. `check --nixpkgs
# DIRECTORY` evaluates the same against the real one and compares with the same goldens.
let
  inherit (builtins)
    all any attrNames attrValues concatLists concatStringsSep elem elemAt filter foldl' genList head isAttrs isBool
    isFunction isInt isList isPath isString length listToAttrs map mapAttrs match replaceStrings stringLength substring
    tail toJSON;
  lib = rec {
    inherit (builtins) concatLists concatStringsSep any all foldl';
    nameValuePair = name: value: { inherit name value; };
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    mapAttrs' = f: set: listToAttrs (mapAttrsToList f set);
    inherit (builtins) mapAttrs;
    filterAttrs = keep: set: listToAttrs (filter ({ name, value }: keep name value) (mapAttrsToList nameValuePair set));
    genAttrs = names: f: listToAttrs (map (name: nameValuePair name (f name)) names);
    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: set: if condition then set else { };
    optionalString = condition: text: if condition then text else "";
    unique = foldl' (found: value: if elem value found then found else found ++ [ value ]) [ ];
    attrByPath =
      path: default: set:
      if path == [ ] then
        set
      else if isAttrs set && set ? ${head path} then
        lib.attrByPath (tail path) default set.${head path}
      else
        default;
    last = list: elemAt list (length list - 1);
    min = a: b: if a < b then a else b;
    concatStrings = concatStringsSep "";
    concatMapStrings = f: list: concatStrings (map f list);
    hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
    hasSuffix =
      suffix: text:
      let
        start = stringLength text - stringLength suffix;
      in
      start >= 0 && substring start (-1) text == suffix;
    splitString = separator: text: filter isString (builtins.split (replaceStrings [ "." ] [ "[.]" ] separator) text);
    toUpper =
      let
        letters = text: genList (n: substring n 1 text) (stringLength text);
      in
      replaceStrings (letters "abcdefghijklmnopqrstuvwxyz") (letters "ABCDEFGHIJKLMNOPQRSTUVWXYZ");
    toInt = text: builtins.fromJSON text;
    inherit (builtins) replaceStrings;
    attrVals = names: set: map (name: set.${name}) names;
    importTOML = file: builtins.fromTOML (builtins.readFile file);
    importJSON = file: builtins.fromJSON (builtins.readFile file);
    makeBinPath = packages: concatStringsSep ":" (map (package: "${package}/bin") packages);
    literalExpression = text: { _type = "literalExpression"; inherit text; };
    fileset = {
      unions = files: files;
      toSource = { root, fileset }: builtins.seq (map (file: builtins.pathExists file || throw "${toString file} is missing") fileset) root;
    };
    licenses.asl20 = "Apache-2.0";
    licenses.mit = "MIT";
    sourceTypes.binaryNativeCode = "binaryNativeCode";
    platforms.linux = [ "x86_64-linux" ];

    mkOption = option: option // { _type = "option"; };
    mkEnableOption =
      what: mkOption { type = types.bool; default = false; example = true; description = "Whether to enable ${what}."; };
    mkPackageOption =
      pkgs: name:
      { extraDescription ? "" }:
      mkOption { type = types.package; default = pkgs.${name}; description = "The ${name} package to use. ${extraDescription}"; };
    mkIf = condition: content: { _type = "if"; inherit condition content; };
    mkOverride = priority: content: { _type = "override"; inherit priority content; };
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;

    types =
      let
        say = loc: "option `${concatStringsSep "." loc}'";
        one =
          description: check:
          {
            inherit description check;
            merge =
              loc: values:
              let
                first = head values;
              in
              if !all check values then
                throw "A definition for ${say loc} is not of type `${description}'. Definition values: ${toJSON (map toText values)}"
              else if any (value: value != first) values then
                throw "The ${say loc} has conflicting definition values"
              else
                first;
          };
        toText = value: if isString value || isInt value || isBool value then value else "<${builtins.typeOf value}>";
        isDerivation = value: isAttrs value && value.type or "" == "derivation";
      in
      rec {
        bool = one "boolean" isBool;
        int = one "signed integer" isInt;
        str = one "string" isString;
        anything = one "anything" (_: true);
        package = { name = "package"; } // one "package" (value: isDerivation value || (isString value && hasPrefix builtins.storeDir value));
        path = one "absolute path" (value: isPath value || isDerivation value || (isString value && hasPrefix "/" value));
        ints.between = least: most: one "integer between ${toString least} and ${toString most} (both inclusive)" (value: isInt value && value >= least && value <= most);
        port = one "16 bit unsigned integer; between 0 and 65535 (both inclusive)" (value: isInt value && value >= 0 && value <= 65535);
        enum = values: one "one of ${toJSON values}" (value: elem value values);
        strMatching = pattern: one "string matching the pattern ${pattern}" (value: isString value && match pattern value != null);
        listOf = element: {
          description = "list of ${element.description}";
          getSubOptions = element.getSubOptions or (_: { });
          check = isList;
          merge =
            loc: values:
            if !all isList values then
              throw "A definition for ${say loc} is not of type `list of ${element.description}'."
            else
              map (value: element.merge (loc ++ [ "*" ]) [ value ]) (concatLists values);
        };
        nullOr = element: {
          description = "null or ${element.description}";
          getSubOptions = element.getSubOptions or (_: { });
          check = value: value == null || element.check value;
          merge = loc: values: if all (value: value == null) values then null else element.merge loc (filter (value: value != null) values);
        };
        oneOf = choices: {
          description = "one of several types";
          check = value: any (choice: choice.check value) choices;
          merge =
            loc: values:
            let
              fitting = filter (choice: all choice.check values) choices;
            in
            if fitting == [ ] then throw "A definition for ${say loc} is not of any of its types." else (head fitting).merge loc values;
        };
        attrsOf = element: {
          description = "attribute set of ${element.description}";
          getSubOptions = element.getSubOptions or (_: { });
          check = isAttrs;
          merge =
            loc: values:
            if !all isAttrs values then
              throw "A definition for ${say loc} is not of type `attribute set of ${element.description}'."
            else
              listToAttrs (
                concatLists (
                  map (
                    name:
                    let
                      defined = strongest (concatLists (map (set: optional (set ? ${name}) set.${name}) values));
                    in
                    optional (defined != [ ]) (nameValuePair name (element.merge (loc ++ [ name ]) defined))
                  ) (attrNames (foldl' (a: b: a // b) { } values))
                )
              );
        };
        submodule = module: {
          description = "submodule";
          getSubOptions = prefix: (evalModules { inherit prefix; specialArgs.name = "<name>"; modules = [ module ]; }).options;
          check = value: isAttrs value || isFunction value;
          merge =
            loc: values:
            (evalModules {
              prefix = loc;
              specialArgs.name = last loc;
              modules = [ module ] ++ map (value: { config = value; }) values;
            }).config;
        };
      };

    # The definitions that count: conditions that hold, of the strongest priority.
    strongest =
      definitions:
      let
        unwrap =
          priority: definition:
          if definition._type or "" == "if" then
            if definition.condition then unwrap priority definition.content else [ ]
          else if definition._type or "" == "override" then
            unwrap definition.priority definition.content
          else
            [ { inherit priority; value = definition; } ];
        unwrapped = concatLists (map (unwrap 100) definitions);
        best = foldl' (least: definition: min least definition.priority) 9999 unwrapped;
      in
      map (definition: definition.value) (filter (definition: definition.priority == best) unwrapped);

    evalModules =
      {
        modules,
        prefix ? [ ],
        specialArgs ? { },
      }:
      let
        load =
          module:
          let
            loaded = if isPath module || isString module then import module else module;
            value = if isFunction loaded then loaded ({ inherit config lib; } // specialArgs) else loaded;
          in
          concatLists (map load (value.imports or [ ]))
          ++ [
            {
              options = value.options or { };
              config = value.config or (removeAttrs value [ "imports" "options" ]);
            }
          ];
        loaded = concatLists (map load modules);
        isOption = value: value._type or "" == "option";
        combine =
          a: b:
          a
          // mapAttrs (
            name: value:
            if a ? ${name} && isAttrs value then
              if isOption value || isOption a.${name} then a.${name} // value else combine a.${name} value
            else
              value
          ) b;
        options = foldl' combine { } (map (module: module.options) loaded);
        # Conditions are pushed down to what they hold.
        evaluate =
          loc: options: definitions:
          let
            sets = concatLists (map push definitions);
            push =
              definition:
              if definition._type or "" == "if" then
                map (mapAttrs (_: content: mkIf definition.condition content)) (push definition.content)
              else
                [ definition ];
            unknown = filter (name: !options ? ${name}) (attrNames (foldl' (a: b: a // b) { } sets));
          in
          if unknown != [ ] then
            throw "The option `${concatStringsSep "." (loc ++ [ (head unknown) ])}' does not exist."
          else
            mapAttrs (
              name: option:
              let
                here = loc ++ [ name ];
                given = concatLists (map (set: optional (set ? ${name}) set.${name}) sets);
                defined = strongest (given ++ optional (option ? default) (mkOverride 1500 option.default));
              in
              if !isOption option then
                evaluate here option given
              else if defined == [ ] then
                throw "The option `${concatStringsSep "." here}' is used but not defined."
              else
                (option.apply or (value: value)) (option.type.merge here defined)
            ) options;
        config = evaluate prefix options (map (module: module.config) loaded);
      in
      { inherit config options; };
  };
in
lib
