%% SPDX-License-Identifier: Apache-2.0
%% What a call costs: nanoseconds of CPU, the least of some rounds.
%%
%%     erl +S 1 -noshell -pa EBIN -run cost main
-module(cost).
-behaviour(gen_server).
-export([main/1, leaf/1, real/2, init/1, handle_call/3, handle_cast/2, handle_info/2]).

-define(CALLS, 4000000).
-define(ROUNDS, 9).

main(_) ->
    [io:format("~0p.~n", [{Name, lists:min([measured(Do) || _ <- lists:seq(1, ?ROUNDS)])}]) || {Name, Do} <- loops()],
    halt().

loops() ->
    [
        {leaf, fun() -> leaves(?CALLS) end},
        {real, fun() -> reals(?CALLS, #{}) end},
        {callback, fun() -> infos(?CALLS, 1) end}
    ].

%% Nanoseconds of CPU a call.
measured(Do) ->
    garbage_collect(),
    statistics(runtime),
    Do(),
    {_, Milliseconds} = statistics(runtime),
    Milliseconds * 1.0e6 / ?CALLS.

leaves(0) -> ok;
leaves(N) ->
    _ = ?MODULE:leaf(N),
    leaves(N - 1).

reals(0, M) -> M;
reals(N, M) ->
    {_, [_ | _], Next} = ?MODULE:real({item, N}, M),
    reals(N - 1, Next).

infos(0, _) -> ok;
infos(N, S) ->
    {noreply, S1} = ?MODULE:handle_info(N, S),
    infos(N - 1, S1).

leaf(N) -> N + 1.

real({item, N}, M) -> {ok, [N, N], maps:put(key, N, M)}.

init(S) -> {ok, S}.
handle_call(_, _, S) -> {reply, ok, S}.
handle_cast(_, S) -> {noreply, S}.
handle_info(N, S) -> {noreply, S bxor N}.
