%% SPDX-License-Identifier: Apache-2.0
%% A provider for rebar3: marks what the project has compiled.
%%
%%     {plugins, [scope_mark]}.
%%     {provider_hooks, [{post, [{compile, {scope_mark, compile}}]}]}.
%%     {scope_mark, [{profile, callbacks}, {only, ["shop_*"]}, {except, []}]}.
-module(scope_mark_rebar3).
-export([init/1, do/1, format_error/1]).

%% The modules of rebar3 are there when it runs.
-ignore_xref([{providers, create, 1}]).
-dialyzer({nowarn_function, [init/1, do/1, folders/1, options/1]}).

init(State) ->
    Provider = providers:create([
        {name, compile},
        {namespace, scope_mark},
        {module, ?MODULE},
        {bare, true},
        {deps, []},
        {example, "rebar3 scope_mark compile"},
        {opts, []},
        {short_desc, "marks compiled code"},
        {desc, "Marks compiled code, so that each call and return can be seen from outside the node."}
    ]),
    {ok, rebar_state:add_provider(State, Provider)}.

do(State) ->
    case options(State) of
        {ok, Options} -> marked(folders(State), Options, State);
        {error, Reason} -> {error, {?MODULE, Reason}}
    end.

marked(Folders, Options, State) ->
    Found = [{F, scope_mark_files:find(F)} || F <- Folders],
    Files = lists:append([Names || {_, {ok, Names}} <- Found]),
    Unread = [{F, R} || {F, {error, R}} <- Found, R =/= {file, enoent}],
    Known = scope_mark_files:behaviours(Files),
    Mark = fun(F) -> scope_mark_files:mark(F, Options#{behaviours => Known}, false) end,
    Outcomes = scope_mark_files:each(Mark, Files),
    case Unread ++ [{P, R} || #{status := failed, path := P, reason := R} <- Outcomes] ++ [{"a file", R} || {error, R} <- Outcomes] of
        [] -> {ok, State};
        [{Path, Reason} | _] -> {error, {?MODULE, {Path, Reason}}}
    end.

%% The ebin folders of the project's applications, in a run for one of them those of that one.
folders(State) ->
    Apps = case rebar_state:current_app(State) of
        undefined -> rebar_state:project_apps(State);
        App -> [App]
    end,
    [rebar_app_info:ebin_dir(A) || A <- Apps].

options(State) ->
    Given = rebar_state:get(State, scope_mark, []),
    Profile = proplists:get_value(profile, Given, none),
    Patterns = fun(Key) -> scope_mark:patterns([unicode:characters_to_binary(T) || T <- proplists:get_value(Key, Given, [])]) end,
    try
        lists:member(Profile, [none, callbacks, all]) orelse throw({no_profile, Profile}),
        {ok, #{profile => Profile, only => Patterns(only), except => Patterns(except)}}
    catch
        throw:Reason -> {error, Reason}
    end.

format_error({no_profile, Profile}) ->
    io_lib:format("there is no profile ~0p: callbacks, all or none", [Profile]);
format_error({Path, Reason}) when Path =/= bad_pattern ->
    io_lib:format("~ts: ~ts", [Path, scope_mark:format_error(Reason)]);
format_error(Reason) ->
    scope_mark:format_error(Reason).
