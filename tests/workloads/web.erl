%% SPDX-License-Identifier: Apache-2.0
%% A web server of one page on cowboy: erl -web_port PORT -s web, with cowboy's code paths.
-module(web).
-export([start/0, init/2]).

start() ->
    {ok, _} = application:ensure_all_started(cowboy),
    {ok, [[Port]]} = init:get_argument(web_port),
    Where = [{ip, {127, 0, 0, 1}}, {port, list_to_integer(Port)}],
    Routes = cowboy_router:compile([{'_', [{'_', ?MODULE, []}]}]),
    Options = #{env => #{dispatch => Routes}, max_keepalive => 1000000},
    {ok, _} = cowboy:start_clear(web, Where, Options),
    io:put_chars("ready\n").

init(Request, State) ->
    {ok, cowboy_req:reply(200, #{}, <<"planted\n">>, Request), State}.
