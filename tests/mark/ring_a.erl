%% SPDX-License-Identifier: Apache-2.0
%% One of two modules that call each other in turn.
-module(ring_a).
-behaviour(ring).
-export([step/3, leap/3]).

step(Pid, 0, _) -> erlang:process_info(Pid, stack_size);
step(Pid, N, Ring) when N rem 3 =:= 0 -> ring:again(Pid, N - 1, Ring);
step(Pid, N, Ring) when N rem 3 =:= 1 -> leap(Pid, N - 1, Ring);
step(Pid, N, [Next | Rest]) -> Next:step(Pid, N - 1, Rest ++ [?MODULE]).

leap(Pid, N, Ring) ->
    Go = fun(M) -> step(Pid, M, Ring) end,
    Go(N).
