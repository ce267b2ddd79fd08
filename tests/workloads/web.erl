%% SPDX-License-Identifier: Apache-2.0
%% A web server of one page on cowboy: erl -web_port PORT -s web, with cowboy's code paths.
%% It counts its answers in memory that an observer can find (as bursts.erl does).
-module(web).
-export([start/0, init/2]).

start() ->
    Answers = atomics:new(3, [{signed, false}]),
    atomics:put(Answers, 1, 16#C0047E45EBBF5C09),
    atomics:put(Answers, 2, 16#5C09EEBBF0000000 bor list_to_integer(os:getpid())),
    {ok, _} = application:ensure_all_started(cowboy),
    {ok, [[Port]]} = init:get_argument(web_port),
    Where = [{ip, {127, 0, 0, 1}}, {port, list_to_integer(Port)}],
    Routes = cowboy_router:compile([{'_', [{'_', ?MODULE, Answers}]}]),
    Options = #{env => #{dispatch => Routes}, max_keepalive => 1000000},
    {ok, _} = cowboy:start_clear(web, Where, Options),
    io:put_chars("ready\n").

init(Request, Answers) ->
    atomics:add(Answers, 3, 1),
    {ok, cowboy_req:reply(200, #{}, <<"planted\n">>, Request), Answers}.
