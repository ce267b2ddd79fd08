%% SPDX-License-Identifier: Apache-2.0
%% Planted servers and their callers, for ever, and what they measure themselves.
%%
%%   truth      answers "truth US" and for slow, chain, backend and state the microseconds in
%%              callbacks, the callbacks, and the microseconds that callers waited, since the start
%%   crowd N    N callers more, each waiting for the slow server
%%   circle     three servers call each other, each the next
-module(gs_main).
-export([start/0]).
-export([main/0, client/2]).

%% For erl -s gs_main.
start() -> spawn(?MODULE, main, []).

main() ->
    gs_times:new(),
    [{ok, _} = Module:start() || Module <- [gs_slow, gs_backend, gs_chain, gs_state]],
    [{ok, _} = gs_circle:start(Name) || Name <- [circle_a, circle_b, circle_c]],
    [spawn_link(?MODULE, client, [gs_slow, Pause]) || Pause <- [17, 29]],
    [spawn_link(?MODULE, client, [gs_chain, Pause]) || Pause <- [11, 23]],
    [spawn_link(?MODULE, client, [gs_state, Pause]) || Pause <- [13, 31]],
    control:serve(fun(_) -> ok end, fun command/2).

command(_Control, ["truth"]) ->
    Words = [gs_times:now() |
        lists:append([gs_times:read(M) || M <- [gs_slow, gs_chain, gs_backend, gs_state]])],
    ["truth", [[" ", integer_to_list(Word)] || Word <- Words]];
command(_Control, ["crowd", N]) ->
    [spawn_link(?MODULE, client, [gs_slow, 0]) || _ <- lists:seq(1, list_to_integer(N))],
    "done crowd";
command(_Control, ["circle"]) ->
    gen_server:cast(circle_a, {ask, circle_b}),
    gen_server:cast(circle_b, {ask, circle_c}),
    gen_server:cast(circle_c, {ask, circle_a}),
    "done circle".

client(Module, Pause) ->
    timer:sleep(rand:uniform(2 * Pause + 1) - 1),
    gs_times:call(Module, fun() -> ask(Module) end),
    client(Module, Pause).

ask(gs_slow) -> gen_server:call(gs_slow, {sleep, 20}, 600000);
ask(gs_chain) -> gen_server:call(gs_chain, ask, infinity);
ask(gs_state) -> gen_statem:call(gs_state, work).
