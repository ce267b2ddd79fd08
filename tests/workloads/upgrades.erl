%% SPDX-License-Identifier: Apache-2.0
%% Code that is replaced again and again while it is called: three versions by turns, so that each
%% lies where one before the last has lain.
%%
%%   run N     N upgrades, while upgraded:work(I) is called every millisecond or two with I = 1, 2, ...;
%%             answers "done run CALLS"
%%   when I    when that call was made, by CLOCK_REALTIME in ns: "when NS"
-module(upgrades).
-export([start/0, main/0, caller/2]).

start() -> spawn(?MODULE, main, []).

main() ->
    put(versions, [binary(V) || V <- [1, 2, 3]]),
    control:serve(fun(_) -> load(1) end, fun command/2).

command(_, ["run", N]) ->
    Calls = ets:new(calls, [public]),
    put(calls, Calls),
    Caller = spawn_link(?MODULE, caller, [Calls, 1]),
    [begin receive after 40 -> ok end, load(V rem 3 + 1) end || V <- lists:seq(1, list_to_integer(N))],
    receive after 40 -> ok end,
    Caller ! {stop, self()},
    receive {stopped, Count} -> io_lib:format("done run ~b", [Count]) end;
command(_, ["when", I]) ->
    [{_, At}] = ets:lookup(get(calls), list_to_integer(I)),
    io_lib:format("when ~b", [At]).

load(Version) ->
    code:purge(upgraded),
    {module, upgraded} = code:load_binary(upgraded, "upgraded.erl", lists:nth(Version, get(versions))).

caller(Calls, I) ->
    ets:insert(Calls, {I, os:system_time(nanosecond)}),
    I = upgraded:work(I),
    receive
        {stop, From} -> From ! {stopped, I}
    after 1 -> caller(Calls, I + 1)
    end.

binary(Version) ->
    Work = {function, 1, work, 1, [{clause, 1, [{var, 1, 'N'}], [], [{var, 1, 'N'}]}]},
    Forms = [{attribute, 1, module, upgraded}, {attribute, 1, export, [{work, 1}]},
             {attribute, 1, number, Version}, Work],
    {ok, upgraded, Binary} = compile:forms(Forms, []),
    Binary.
