%% SPDX-License-Identifier: Apache-2.0
%% One of three modules that do the same work, so that only who called it differs (see split.erl).
-module(split_a).
-export([work/1, wait/1]).

work(0) -> 0;
work(N) ->
    Sum = spin(2000, 0),
    Sum + work(N - 1).

spin(0, Sum) -> Sum;
spin(N, Sum) -> spin(N - 1, (Sum * 31 + N) band 16#ffffff).

wait(Milliseconds) ->
    receive
        never -> ok
    after Milliseconds -> ok
    end.
